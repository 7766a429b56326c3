// One item: its row in the list and, opened, all that was said of it.
const marks = (item, rung) => {
  const holder = make("span", `marks ${kindClass(rung.name)}`, make("i", "tinted", rung.short));
  SIDES.forEach(({ letter, label }, side) => {
    const score = scoreOf(item, rung.name, side);
    const sign = score === null ? "–" : score === 1 ? "✓" : score === 0 ? "✗" : score.toFixed(2);
    const kind = score === null ? "absent" : right(item, rung.name, side) ? "right" : "wrong";
    const mark = make("span", `mark ${kind}`, `${letter} ${sign}`);
    mark.title = `${label}, ${rung.title}: ${score === null ? "no record" : `score ${score}`}`;
    holder.append(mark);
  });
  return holder;
};

const statusChip = (status) => make("span", `chip${status === "scored" ? "" : " odd"}`, status);
const fragileChip = (fragile) => (fragile ? make("span", "chip odd", "fragile") : null);

// Bars compare what was ranked: shares by log-likelihood, or, where length was divided out, the mean probability of a character or byte.
const barShares = (reply) => {
  if (reply.per_unit) return reply.per_unit.map((value) => (value === null ? 0 : Math.exp(value)));
  const top = Math.max(...reply.nats);
  const weights = reply.nats.map((value) => Math.exp(value - top));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
};

const natsCell = (reply, i) => {
  if (reply?.nats?.[i] === undefined) return make("td", "nats none", "–");
  const first = reply.ranked === i;
  const bar = make("span", "bar");
  bar.style.width = `${(100 * barShares(reply)[i]).toFixed(1)}%`;
  const line = make("td", `nats${first ? " first" : ""}`, `${reply.nats[i].toFixed(3)} nats`);
  if ((reply.per_unit?.[i] ?? null) !== null) line.append(" ", make("span", "per", `${reply.per_unit[i].toFixed(3)} a ${reply.unit}`));
  if (first) line.append(" ", make("span", "chip", "ranked first"));
  if (!reply.unbarred) line.append(make("span", "track", bar)); // what another metric ranks by, a bar of these would contradict
  return line;
};

const choiceTable = (asked) => {
  const head = make("tr", "", make("th", "", "choice"), ...SIDES.map(({ label }) => make("th", "", label)));
  const rows = asked.choices.map((choice, i) => {
    const name = make("td", "", ...(choice ? shown(choice) : ["(empty)"]));
    if (i === asked.gold_index) name.append(" ", make("span", "chip", "gold"));
    return make("tr", "", name, ...SIDES.map((_, side) => natsCell(asked.sides[side][0], i)));
  });
  return make("div", "scroll", make("table", "choices", make("thead", "", head), make("tbody", "", ...rows)));
};

const readAs = (reading, label) =>
  make("p", "gold", `${label}: `, reading.answer ? make("b", "", ...shown(reading.answer)) : make("span", "none", "no answer"),
    make("span", "none", ` (${[reading.rule, reading.extractor].filter(Boolean).join(", ")})`));

const replyBlock = (side, reply, several, written) => {
  const facts = [`score ${reply.score}`, reply.finish_reason, reply.completion_tokens ? `${reply.completion_tokens} tokens` : "",
    reply.cut ? `${reply.cut} tokens of its prompt cut` : "", reply.beyond ? `${reply.beyond} tokens beyond the context` : ""];
  if (several) facts.push(`seed ${reply.seed}`);
  const head = make("h4", "", make("b", "", SIDES[side].label), statusChip(reply.status), fragileChip(reply.fragile),
    facts.filter(Boolean).join(" · "));
  const error = reply.error ? make("p", "gold", ...shown(reply.error)) : null;
  const never = reply.never ? make("p", "gold", `Right for no checkpoint: ${reply.never}`) : null;
  const opened = reply.prefix ? make("span", "cut-out", `${reply.prefix} (in the prompt)`) : "";
  const others = (reply.others || []).map((other) => {
    const line = readAs(other, "also read as");
    line.append(` score ${other.score} `, other.status === "scored" ? "" : statusChip(other.status));
    return line;
  });
  return make("div", "", head, error, never, written ? make("pre", "", opened, ...(reply.text ? shown(reply.text) : ["(empty)"])) : null,
    readAs(reply, "read as"), ...others);
};

// A side's column: its replies, or why there are none.
const column = (asked, side, written) => {
  const replies = asked.sides[side];
  const other = asked.prompts?.[side];
  const parts = replies.map((reply) => replyBlock(side, reply, replies.length > 1, written));
  if (other) parts.unshift(make("p", "gold", `another prompt of the ${SIDES[side].label}:`), make("pre", "", ...shown(other)));
  const none = SIDES[side].missing ? "its texts are not in this page" : "no record";
  if (!replies.length) parts.push(make("h4", "", make("b", "", SIDES[side].label), make("span", "none", none)));
  return make("div", "", ...parts);
};

// Where an item's records lie: RUN/records/FILE, item NAME.
const whereabouts = (item, rung) =>
  SIDES.flatMap(({ label, run, missing }, side) =>
    missing ? [] : item.columns[rung].files[side].map((file) => `${label}: ${run}/records/${file}, item ${item.name}`));

// Without texts: what the table knows.
const bareBlock = (item, rung) => {
  const lines = SIDES.map(({ label }, side) => {
    const score = scoreOf(item, rung, side);
    const answer = answerOf(item, rung, side);
    const status = statusOf(item, rung, side);
    return make("h4", "", make("b", "", label), status ? statusChip(status) : null, fragileChip(isFragile(item, rung, side)),
      score === null ? "no record" : `score ${score}`, answer ? ` · read as: ${answer}` : "");
  });
  const places = whereabouts(item, rung);
  const note = places.length ? "Its texts are not in this page. They lie in" : "Its texts are not in this page.";
  return [...lines, make("p", "gold none", note), ...places.map((place) => make("p", "ids", place))];
};

const rungBlock = (item, rung, texts) => {
  const heading = make("h3", `tinted ${kindClass(rung.name)}`, capital(rung.title));
  if (!item.columns[rung.name] || SIDES.every((_, side) => scoreOf(item, rung.name, side) === null))
    return [heading, make("p", "none", "not asked")];
  if (!paired(item, rung.name)) heading.append(" ", make("span", "chip odd", "left out of the gap: not paired"));
  if (!texts?.[rung.name]) return [heading, ...bareBlock(item, rung.name)];
  const asked = texts[rung.name];
  const parts = [heading, make("pre", "", ...shown(asked.prompt)), make("p", "gold", "gold: ", make("b", "", ...shown(asked.gold)))];
  const written = rung.replies || !asked.choices.length;
  if (asked.choices.length) parts.push(choiceTable(asked));
  const rule = written ? "" : asked.sides.flat().find((reply) => reply.rule)?.rule;
  if (rule) parts.push(make("p", "gold", "ranked first by: ", make("b", "", rule)));
  const odd = asked.sides.flat().some((reply) => reply.status !== "scored" || reply.fragile || reply.others || reply.error || reply.cut || reply.never);
  const gone = asked.sides.some((replies) => !replies.length) || asked.prompts;
  if (written || odd || gone) parts.push(make("div", "two", ...SIDES.map((_, side) => column(asked, side, written))));
  const long = [asked.prompt, ...asked.sides.flat().map((reply) => reply.text)].some(Array.isArray);
  if (long) parts.push(make("p", "gold none", "In full:"), ...whereabouts(item, rung.name).map((place) => make("p", "ids", place)));
  return parts;
};

const gist = (texts) => {
  const prompt = plain(Object.values(texts)[0].prompt).replace(/\s+/g, " ");
  return prompt.length > 220 ? `…${prompt.slice(-220)}` : prompt;
};

const card = (item) => {
  const odd = oddOf(item);
  const where = make("span", "where", make("b", "", item.task), ` ${item.name}`);
  where.title = `${item.task} ${item.name} ${item.subject}`;
  const asked = make("span", "asked", item.place ? "" : "texts not in this page");
  textsOf(item).then((texts) => texts && (asked.textContent = gist(texts)));
  const summary = make("summary", "", where, ...RUNGS.map((rung) => marks(item, rung)), asked,
    odd ? make("span", "chip odd", `${SIDES[odd[0]].label} ${odd[1]}`) : null);
  const details = make("details", "item", summary);
  details.addEventListener("toggle", async () => {
    if (!details.open || details.childElementCount > 1) return;
    const body = make("div", "body");
    details.append(body);
    const texts = await textsOf(item);
    body.append(...RUNGS.flatMap((rung) => rungBlock(item, rung, texts)));
  });
  return details;
};
