// Drives OpenAI's client for Node, and prints what it got as JSON: `node drive_openai.cjs URL KEY`, with NODE_PATH.

const OpenAI = require("openai");

async function main(url, apiKey) {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey });
  const request = { model: "synthesizer", prompt: "the north", max_tokens: 8, n: 2, logprobs: null, stop: null };
  const whole = await client.completions.create(request);
  const texts = ["", ""];
  let usage = null;
  const options = { stream: true, stream_options: { include_usage: true } };
  for await (const event of await client.completions.create({ ...request, ...options, seed: whole.seed })) {
    for (const choice of event.choices) texts[choice.index] += choice.text;
    usage = event.usage ?? usage;
  }
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  const wrong = await client.completions.create({ ...request, model: "another" }).catch((error) => error);
  return { whole: whole.choices.map((choice) => choice.text), texts, usage, models, wrong: [wrong.status, wrong.param] };
}

main(...process.argv.slice(2)).then((got) => console.log(JSON.stringify(got)));
