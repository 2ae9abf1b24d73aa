module everbatch/clients

go 1.23

require github.com/openai/openai-go/v3 v3.98.0
