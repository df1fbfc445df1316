// Vectors of an exported folder in Node, from local files alone; run where `npm install @huggingface/transformers` was:
//   node serve_onnx.mjs FOLDER TEXTS.json VECTORS.json [fp32|q8]
// TEXTS.json is a list of texts, prompts included. VECTORS.json: {"version", "vectors": one list per text}.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, texts, out, dtype = "fp32"] = process.argv.slice(2);
const here = createRequire(resolve("package.json"));
const { AutoModel, AutoTokenizer, env } = await import(pathToFileURL(here.resolve("@huggingface/transformers")));

env.localModelPath = dirname(resolve(folder));
env.allowRemoteModels = false;
const tokenizer = await AutoTokenizer.from_pretrained(basename(folder));
const model = await AutoModel.from_pretrained(basename(folder), { dtype });

const vectors = [];
const all = JSON.parse(readFileSync(texts, "utf8"));
for (let i = 0; i < all.length; i += 8) {
  const inputs = tokenizer(all.slice(i, i + 8), { padding: true, truncation: true });
  vectors.push(...(await model(inputs)).sentence_embedding.tolist());
}
writeFileSync(out, JSON.stringify({ version: env.version, vectors }));
