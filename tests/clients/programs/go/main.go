// OpenAI's own Go SDK: prompts as a JSON list on stdin, a text or null for each on stdout.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

type line struct {
	CustomID string `json:"custom_id"`
	Response struct {
		Body openai.ChatCompletion `json:"body"`
	} `json:"response"`
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	var prompts []string
	check(json.NewDecoder(os.Stdin).Decode(&prompts))
	client := openai.NewClient(option.WithBaseURL(os.Args[1]), option.WithAPIKey("none"))
	ctx := context.Background()

	var input bytes.Buffer
	for number, prompt := range prompts {
		request := map[string]any{
			"custom_id": fmt.Sprint(number), "method": "POST", "url": "/v1/chat/completions",
			"body": map[string]any{"model": os.Args[2], "messages": []any{map[string]string{"role": "user", "content": prompt}}},
		}
		check(json.NewEncoder(&input).Encode(request))
	}
	file, err := client.Files.New(ctx, openai.FileNewParams{
		File:    openai.File(&input, "in.jsonl", "application/jsonl"),
		Purpose: openai.FilePurposeBatch,
	})
	check(err)
	batch, err := client.Batches.New(ctx, openai.BatchNewParams{
		InputFileID:      file.ID,
		Endpoint:         openai.BatchNewParamsEndpointV1ChatCompletions,
		CompletionWindow: openai.BatchNewParamsCompletionWindow24h,
	})
	check(err)
	for batch.Status != openai.BatchStatusCompleted {
		time.Sleep(200 * time.Millisecond)
		batch, err = client.Batches.Get(ctx, batch.ID)
		check(err)
	}
	texts := make([]*string, len(prompts))
	if batch.OutputFileID != "" {
		content, err := client.Files.Content(ctx, batch.OutputFileID)
		check(err)
		defer content.Body.Close()
		scanner := bufio.NewScanner(content.Body)
		for scanner.Scan() {
			var result line
			check(json.Unmarshal(scanner.Bytes(), &result))
			var number int
			fmt.Sscan(result.CustomID, &number)
			texts[number] = &result.Response.Body.Choices[0].Message.Content
		}
		check(scanner.Err())
	}
	check(json.NewEncoder(os.Stdout).Encode(texts))
}
