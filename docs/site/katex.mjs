// Reads a JSON list of [formula, display] from stdin and writes the HTML of each, or {error}.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const katex = createRequire(import.meta.url)("katex");
const options = { throwOnError: true, strict: "error", trust: false, output: "htmlAndMathml" };
const results = JSON.parse(readFileSync(0, "utf8")).map(([formula, display]) => {
  try {
    return katex.renderToString(formula, { ...options, displayMode: display });
  } catch (error) {
    return { error: error.message };
  }
});
process.stdout.write(JSON.stringify(results));
