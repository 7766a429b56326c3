"use strict";
// Text from a run reaches the page through textContent only.
(() => {
  const PAGE_SIZE = 25;
  const SIDES = ["teacher", "student"];
  const PROTOCOLS = { loglikelihood: "log-lik", generation: "gen" };
  const data = (id) => JSON.parse(document.getElementById(id).textContent);
  const at = (id) => document.getElementById(id);

  const make = (tag, className, ...children) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
    return element;
  };

  const items = data("data-items");
  const cell = (item, protocol, side) => (item[protocol] ? item[protocol][side] : null);
  const right = (item, protocol, side) => {
    const found = cell(item, protocol, side);
    return found ? found.score >= 0.5 : null;
  };
  const paired = (item, protocol) => Boolean(item[protocol] && item[protocol].paired);
  const lostUnder = (item, protocol) =>
    paired(item, protocol) && right(item, protocol, "teacher") && !right(item, protocol, "student");
  const unanswered = (item) =>
    Object.keys(PROTOCOLS).flatMap((protocol) =>
      SIDES.flatMap((side) =>
        (cell(item, protocol, side)?.replies || [])
          .filter((reply) => reply.status !== "scored" || reply.finish_reason === "length")
          .map((reply) => ({
            side,
            status: reply.status === "scored" ? "cut" : reply.status,
          })),
      ),
    );

  const KINDS = [
    ["all", "All", () => true],
    ["hidden", "Student: log-likelihood right, generation wrong", (item) =>
      paired(item, "loglikelihood") && paired(item, "generation") &&
      right(item, "loglikelihood", "student") && !right(item, "generation", "student")],
    ["lost-generation", "Generation: teacher right, student wrong", (item) => lostUnder(item, "generation")],
    ["lost-loglikelihood", "Log-likelihood: teacher right, student wrong", (item) => lostUnder(item, "loglikelihood")],
    ["unanswered", "No answer or cut", (item) => unanswered(item).length > 0],
  ];

  // The items that the tool is about come first, where there are any.
  const state = { task: "", kind: items.some(KINDS[1][2]) ? "hidden" : "all", text: "", page: 0 };
  const haystacks = [];
  const haystack = (i) => {
    if (haystacks[i] === undefined) {
      const item = items[i];
      const parts = [item.task, item.subject, item.item];
      for (const protocol of Object.keys(PROTOCOLS)) {
        const asked = item[protocol];
        if (!asked) continue;
        parts.push(asked.prompt, asked.gold, ...asked.choices);
        for (const side of SIDES) {
          for (const reply of asked[side] ? asked[side].replies : []) parts.push(reply.answer, reply.text, reply.status);
        }
      }
      haystacks[i] = parts.join("\n").toLowerCase();
    }
    return haystacks[i];
  };

  const marks = (item, protocol) => {
    const holder = make("span", `marks ${protocol}`, make("i", "", PROTOCOLS[protocol]));
    for (const side of SIDES) {
      const found = cell(item, protocol, side);
      const letter = side === "teacher" ? "T" : "S";
      const sign = !found ? "–" : found.score === 1 ? "✓" : found.score === 0 ? "✗" : found.score.toFixed(2);
      const kind = !found ? "absent" : found.score >= 0.5 ? "right" : "wrong";
      const mark = make("span", `mark ${kind}`, `${letter} ${sign}`);
      mark.title = `${side}, ${protocol}: ${found ? `score ${found.score}` : "no record"}`;
      holder.append(mark);
    }
    return holder;
  };

  const statusChip = (reply) => {
    const chip = make("span", `chip${reply.status === "scored" ? "" : " odd"}`, reply.status);
    return reply.error ? make("span", "", chip, ` ${reply.error}`) : chip;
  };

  const probabilities = (nats) => {
    const top = Math.max(...nats);
    const weights = nats.map((value) => Math.exp(value - top));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return weights.map((weight) => weight / total);
  };

  const natsCell = (asked, side, i) => {
    const found = asked[side];
    const nats = found ? found.choice_loglikelihoods_nats : [];
    if (nats[i] === undefined) return make("td", "nats none", "–");
    const first = found.replies[0].answer === asked.choices[i];
    const bar = make("span", "bar");
    bar.style.width = `${(100 * probabilities(nats)[i]).toFixed(1)}%`;
    const line = make("td", `nats${first ? " first" : ""}`, `${nats[i].toFixed(3)} nats`);
    if (first) line.append(" ", make("span", "chip", "ranked first"));
    line.append(make("span", "track", bar));
    return line;
  };

  const choiceTable = (asked) => {
    const head = make("tr", "", make("th", "", "choice"), make("th", "", "teacher"), make("th", "", "student"));
    const body = make("tbody", "");
    asked.choices.forEach((choice, i) => {
      const name = make("td", "", choice || "(empty)");
      if (i === asked.gold_index) name.append(" ", make("span", "chip", "gold"));
      body.append(make("tr", "", name, ...SIDES.map((side) => natsCell(asked, side, i))));
    });
    return make("table", "choices", make("thead", "", head), body);
  };

  const replyBlock = (side, reply, several) => {
    const facts = [`score ${reply.score}`, reply.finish_reason, reply.completion_tokens ? `${reply.completion_tokens} tokens` : ""];
    if (several) facts.push(`seed ${reply.seed}`);
    const head = make("h4", "", make("b", "", side), statusChip(reply), facts.filter(Boolean).join(" · "));
    const read = make("p", "gold", "read as: ", reply.answer ? make("b", "", reply.answer) : make("span", "none", "no answer"));
    return make("div", "", head, make("pre", "", reply.text || "(empty)"), read);
  };

  const protocolBlock = (item, protocol, heading) => {
    const asked = item[protocol];
    if (!asked) return [make("h3", protocol, heading), make("p", "none", "not asked")];
    const title = make("h3", protocol, heading);
    if (!asked.paired) title.append(" ", make("span", "chip odd", "left out of the gap: not paired"));
    const parts = [title, make("pre", "", asked.prompt), make("p", "gold", "gold: ", make("b", "", asked.gold))];
    if (asked.choices.length) parts.push(choiceTable(asked));
    if (protocol === "generation" || !asked.choices.length) {
      const columns = SIDES.map((side) => {
        const replies = asked[side] ? asked[side].replies : [];
        return make("div", "", ...replies.map((reply) => replyBlock(side, reply, replies.length > 1)));
      });
      parts.push(make("div", "two", ...columns));
    } else {
      for (const side of SIDES) {
        const reply = asked[side] ? asked[side].replies[0] : null;
        if (reply && reply.status !== "scored") parts.push(make("h4", "", make("b", "", side), statusChip(reply)));
      }
    }
    return parts;
  };

  const card = (item) => {
    const prompt = (item.loglikelihood || item.generation).prompt.replace(/\s+/g, " ");
    const odd = unanswered(item);
    const summary = make(
      "summary", "",
      make("span", "where", make("b", "", item.task), ` ${item.item}`),
      marks(item, "loglikelihood"), marks(item, "generation"),
      make("span", "asked", prompt.length > 220 ? `…${prompt.slice(-220)}` : prompt),
      odd.length ? make("span", "chip odd", `${odd[0].side} ${odd[0].status}`) : null,
    );
    summary.firstChild.title = `${item.task} ${item.item} ${item.subject}`;
    const details = make("details", "item", summary);
    details.addEventListener("toggle", () => {
      if (!details.open || details.childElementCount > 1) return;
      details.append(make(
        "div", "body",
        ...protocolBlock(item, "loglikelihood", "Log-likelihood ranking"),
        ...protocolBlock(item, "generation", "Generation"),
      ));
    });
    return details;
  };

  const inTask = (item) => !state.task || item.task === state.task;
  const show = () => {
    const test = KINDS.find(([name]) => name === state.kind)[2];
    const words = state.text.toLowerCase().trim();
    const chosen = items.filter((item, i) => inTask(item) && test(item) && (!words || haystack(i).includes(words)));
    const pages = Math.max(1, Math.ceil(chosen.length / PAGE_SIZE));
    state.page = Math.min(state.page, pages - 1);
    const start = state.page * PAGE_SIZE;
    at("item-count").textContent = `${chosen.length} of ${items.length} items`;
    at("page-now").textContent = `page ${state.page + 1} of ${pages}`;
    at("page-back").disabled = state.page === 0;
    at("page-next").disabled = state.page === pages - 1;
    const cards = chosen.slice(start, start + PAGE_SIZE).map(card);
    at("item-list").replaceChildren(...(cards.length ? cards : [make("p", "empty", "No item matches.")]));
    for (const [name, , counts] of KINDS) {
      at(`count-${name}`).textContent = items.filter((item) => inTask(item) && counts(item)).length;
    }
  };
  const change = (key, value) => {
    state[key] = value;
    state.page = 0;
    show();
  };

  const buildFilters = () => {
    for (const task of ["", ...new Set(items.map((item) => item.task))]) {
      const option = make("option", "", task || "all tasks");
      option.value = task;
      at("filter-task").append(option);
    }
    for (const [name, label] of KINDS) {
      const input = make("input", "");
      Object.assign(input, { type: "radio", name: "kind", value: name, checked: name === state.kind });
      input.addEventListener("change", () => change("kind", name));
      const count = make("em", "");
      count.id = `count-${name}`;
      at("filter-kind").append(make("label", "", input, make("span", "", label, count)));
    }
    at("filter-task").addEventListener("change", (event) => change("task", event.target.value));
    at("filter-text").addEventListener("input", (event) => change("text", event.target.value));
    at("filters").addEventListener("submit", (event) => event.preventDefault());
    const turn = (step) => {
      state.page += step;
      show();
      at("items").scrollIntoView({ block: "start" });
    };
    at("page-back").addEventListener("click", () => turn(-1));
    at("page-next").addEventListener("click", () => turn(1));
  };

  const draw = () => {
    for (const [name, chart] of Object.entries(data("data-figures"))) {
      at(`chart-${name}`).style.height = `${chart.layout.height}px`; // plotly leaves it open, and print collapses it
      Plotly.newPlot(at(`chart-${name}`), chart.data, chart.layout, { displayModeBar: false, responsive: true });
    }
  };

  buildFilters();
  show();
  draw();
})();
