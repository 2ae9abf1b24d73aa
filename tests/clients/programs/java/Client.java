import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.openai.client.OpenAIClient;
import com.openai.client.okhttp.OpenAIOkHttpClient;
import com.openai.core.http.HttpResponse;
import com.openai.models.batches.Batch;
import com.openai.models.batches.BatchCreateParams;
import com.openai.models.files.FileCreateParams;
import com.openai.models.files.FilePurpose;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/** OpenAI's own Java SDK: prompts as a JSON list on stdin, a text or null for each on stdout. */
public class Client {
    public static void main(String[] args) throws Exception {
        ObjectMapper json = new ObjectMapper();
        String[] prompts = json.readValue(System.in, String[].class);
        OpenAIClient client = OpenAIOkHttpClient.builder().baseUrl(args[0]).apiKey("none").build();

        List<String> lines = new ArrayList<>();
        for (int number = 0; number < prompts.length; number++) {
            Object messages = List.of(Map.of("role", "user", "content", prompts[number]));
            lines.add(json.writeValueAsString(Map.of(
                    "custom_id", String.valueOf(number),
                    "method", "POST",
                    "url", "/v1/chat/completions",
                    "body", Map.of("model", args[1], "messages", messages))));
        }
        Path input = Files.createTempDirectory("client").resolve("in.jsonl");
        Files.write(input, lines, StandardCharsets.UTF_8);

        String fileId = client.files()
                .create(FileCreateParams.builder().file(input).purpose(FilePurpose.BATCH).build())
                .id();
        Batch batch = client.batches().create(BatchCreateParams.builder()
                .inputFileId(fileId)
                .endpoint(BatchCreateParams.Endpoint.V1_CHAT_COMPLETIONS)
                .completionWindow(BatchCreateParams.CompletionWindow._24H)
                .build());
        while (!batch.status().equals(Batch.Status.COMPLETED)) {
            Thread.sleep(200);
            batch = client.batches().retrieve(batch.id());
        }
        batch.validate();
        String[] texts = new String[prompts.length];
        if (batch.outputFileId().isPresent()) {
            try (HttpResponse response = client.files().content(batch.outputFileId().get());
                    BufferedReader reader =
                            new BufferedReader(new InputStreamReader(response.body(), StandardCharsets.UTF_8))) {
                String line;
                while ((line = reader.readLine()) != null) {
                    JsonNode result = json.readTree(line);
                    JsonNode message = result.at("/response/body/choices/0/message/content");
                    texts[result.get("custom_id").asInt()] = message.asText();
                }
            }
        }
        new PrintStream(System.out, true, StandardCharsets.UTF_8).println(json.writeValueAsString(texts));
        System.exit(0); // the client's threads would keep the process for a minute
    }
}
