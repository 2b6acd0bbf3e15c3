// The checks of test_clients.py with Node's openai package; prints "ok", or throws.
const assert = require("node:assert/strict");
const path = require("node:path");
const OpenAI = require(path.join(process.env.EDGEKIT_NODE_MODULES, "openai"));

const schema = JSON.parse(process.env.SCHEMA);
const messages = [{ role: "user", content: "What is the weather in Rome?" }];
const tool = { type: "function", function: { name: "weather", parameters: schema } };
const forced = { type: "function", function: { name: "weather" } };
const format = { type: "json_schema", json_schema: { name: "weather", schema, strict: true } };

function fits(text) {
  const value = JSON.parse(text);
  assert.deepEqual(Object.keys(value).sort(), ["city", "sunny"]);
  assert.ok(["Paris", "Rome"].includes(value.city));
}

async function main() {
  const client = new OpenAI({
    baseURL: process.env.BASE_URL,
    apiKey: process.env.TOKEN,
    maxRetries: 0,
  });
  const asked = { model: "tiny", messages, max_tokens: 200 };

  const whole = await client.chat.completions.create({ ...asked, max_tokens: 6 });
  assert.ok(whole.usage.completion_tokens <= 6);

  const chunks = [];
  const stream = await client.chat.completions.create({
    ...asked, max_tokens: 6, stream: true, stream_options: { include_usage: true },
  });
  for await (const chunk of stream) chunks.push(chunk);
  assert.deepEqual(chunks.at(-1).choices, []);
  assert.ok(chunks.at(-1).usage.completion_tokens <= 6);

  const called = await client.chat.completions.create({
    ...asked, tools: [tool], tool_choice: forced,
  });
  fits(called.choices[0].message.tool_calls[0].function.arguments);

  const streamed = client.chat.completions.stream({
    ...asked, tools: [tool], tool_choice: forced,
  });
  const final = await streamed.finalChatCompletion();
  assert.equal(final.choices[0].finish_reason, "tool_calls");
  fits(final.choices[0].message.tool_calls[0].function.arguments);

  const formed = await client.chat.completions.create({ ...asked, response_format: format });
  fits(formed.choices[0].message.content);

  const response = await client.responses.create({
    model: "tiny", input: "Rome?", max_output_tokens: 200,
    text: { format: { type: "json_schema", name: "weather", schema, strict: true } },
  });
  fits(response.output_text);
  let last;
  const events = await client.responses.create({
    model: "tiny", input: "Rome?", max_output_tokens: 6, stream: true,
  });
  for await (const event of events) last = event.type;
  assert.ok(["response.completed", "response.incomplete"].includes(last));

  await assert.rejects(
    client.chat.completions.create({ ...asked, model: "gpt-9" }), (error) => error.status === 404,
  );
  console.log("ok");
}

main();
