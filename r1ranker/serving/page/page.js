"use strict";

const EXAMPLES = {
  passages: {
    task: "Passage-9",
    request: "how are glacier caves formed?",
    candidates: [
      "A partly submerged glacier cave on Perito Moreno Glacier.",
      "A glacier cave is a cave formed within the ice of a glacier, most often by water that runs through it.",
      "Bread rises because yeast makes gas.",
      "The ice facade is approximately 60 m high.",
    ],
  },
  films: {
    task: "Rec-Movie",
    request: "Alien\nBlade Runner\nThe Terminator",
    candidates: ["Aliens", "Heidi", "Total Recall", "Babe", "Annie Hall"],
  },
  llms: {
    task: "Router-Performance",
    request: "Prove that there are infinitely many primes.",
    candidates: ["gpt-4", "mistral-7b", "claude-instant", "llama-2-70b"],
  },
};
const at = (id) => document.getElementById(id);
let running = null;

const isHistory = () => at("task").value.startsWith("Rec-");
const linesOf = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

function label() {
  at("request-label").textContent = isHistory() ? "History, one a line, oldest first" : "Question";
}

function fill() {
  const example = EXAMPLES[at("example").value];
  at("task").value = example.task;
  at("request").value = example.request;
  at("candidates").value = example.candidates.join("\n");
  label();
}

function bodyOf() {
  const candidates = linesOf(at("candidates").value);
  const isPassages = at("task").value.startsWith("Passage");
  const body = {
    task: at("task").value,
    candidates: isPassages ? candidates.map((text, place) => ({ name: `passage ${place}`, text })) : candidates,
  };
  if (isHistory()) body.history = linesOf(at("request").value);
  else body.query = at("request").value.trim();
  if (at("strategy").value) body.strategy = at("strategy").value;
  return body;
}

function shownNames(body) {
  return new Map(body.candidates.map((one) => (typeof one === "string" ? [one, one] : [one.name, one.text])));
}

function item(text, note, isOut) {
  const entry = document.createElement("li");
  entry.textContent = text;
  if (isOut) entry.className = "out";
  if (note) {
    const mark = document.createElement("span");
    mark.textContent = note;
    entry.append(mark);
  }
  return entry;
}

function say(text, isBad = false) {
  at("status").textContent = text;
  at("status").className = isBad ? "bad" : "";
}

function showRounds(names, rounds) {
  const left = [...names.keys()].filter((name) => !rounds.has(name));
  const out = [...rounds.keys()].reverse();
  at("ranking").replaceChildren(
    ...left.map((name) => item(names.get(name), "", false)),
    ...out.map((name) => item(names.get(name), `out in round ${rounds.get(name)}`, true)),
  );
}

function showRanking(names, found) {
  at("ranking").replaceChildren(
    ...found.ranking.map((name, place) => {
      const round = found.out_in_round && found.out_in_round[name];
      const score = found.scores && `${(100 * found.scores[place]).toFixed(1)}%`;
      return item(names.get(name), score || (round ? `out in round ${round}` : ""), false);
    }),
  );
  const cost = found.cost;
  at("cost").textContent =
    `${cost.calls} ${cost.calls === 1 ? "call" : "calls"}, ${cost.prompt_tokens} prompt tokens (${cost.cached_tokens} cached), ${cost.response_tokens} response tokens`;
  at("thoughts-box").hidden = !found.thoughts.length;
  at("thoughts").replaceChildren(...found.thoughts.map((thought) => item(thought, "", false)));
}

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const [name, data] = text.slice(0, end).split("\n");
      text = text.slice(end + 2);
      yield [name.replace("event: ", ""), JSON.parse(data.replace("data: ", ""))];
    }
  }
}

async function rank(event) {
  event.preventDefault();
  const body = bodyOf();
  const names = shownNames(body);
  const rounds = new Map();
  const key = at("key").value;
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  at("curl").textContent =
    `curl ${location.origin}/v1/rank${key ? " -H 'Authorization: Bearer KEY'" : ""} -H 'Content-Type: application/json' -d '${quoted}'`;
  running = new AbortController();
  at("rank").disabled = true;
  at("stop").hidden = false;
  at("outcome").hidden = false;
  at("cost").textContent = "";
  at("thoughts-box").hidden = true;
  showRounds(names, rounds);
  say("Ranking ...");
  try {
    const response = await fetch("v1/rank", {
      method: "POST", headers, body: JSON.stringify({ ...body, stream: true }), signal: running.signal,
    });
    if (!response.ok) throw new Error((await response.json()).detail);
    for await (const [name, data] of eventsOf(response)) {
      if (name === "error") throw new Error(data.detail);
      if (name === "ranking") {
        showRanking(names, data);
        say(`Done: ${names.get(data.ranking[0])} comes first.`);
        continue;
      }
      for (const one of data.out) rounds.set(one.name, one.round);
      showRounds(names, rounds);
      say(`${names.size - rounds.size} of ${names.size} are left.`);
    }
  } catch (error) {
    at("outcome").hidden = !rounds.size;
    say(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
  } finally {
    at("rank").disabled = false;
    at("stop").hidden = true;
  }
}

at("example").addEventListener("change", fill);
at("task").addEventListener("change", label);
at("form").addEventListener("submit", rank);
at("stop").addEventListener("click", () => running && running.abort());
fill();
