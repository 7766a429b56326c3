// Texts of items: chunks inflated when they are wanted, a few of them kept.
const CHUNKS_KEPT = 16;
const { order, sizes } = await inflate("data-places");
const starts = table.tasks.map((_, t) => table.tasks.slice(0, t).reduce((sum, task) => sum + task.items.length, 0));
const inChunks = order.map(([t, i]) => items[starts[t] + i]); // the items that have texts, as the chunks have them
const chunkStarts = sizes.map((_, chunk) => sizes.slice(0, chunk).reduce((sum, size) => sum + size, 0));
sizes.forEach((size, chunk) => {
  for (let k = 0; k < size; k += 1) inChunks[chunkStarts[chunk] + k].place = [chunk, k];
});

const kept = new Map();
const chunkOf = (chunk) => {
  const found = kept.get(chunk) || inflate(`data-texts-${chunk}`);
  kept.delete(chunk);
  kept.set(chunk, found); // last used, last dropped
  if (kept.size > CHUNKS_KEPT) kept.delete(kept.keys().next().value);
  return found;
};

// What was said of an item, by rung; null where its texts are not in this page.
const textsOf = async (item) => (item.place ? (await chunkOf(item.place[0]))[item.place[1]] : null);

// A text is a string, or [beginning, characters left out, end].
const plain = (text) => (Array.isArray(text) ? `${text[0]}\n${text[2]}` : text || "");
const leftOut = (text) => `… ${text[1].toLocaleString("en")} characters left out …`;
const shown = (text) => (Array.isArray(text) ? [text[0], make("span", "cut-out", leftOut(text)), text[2]] : [text]);

const wordsOf = (texts) =>
  Object.values(texts).flatMap((asked) => [
    asked.prompt, asked.gold, ...asked.choices, ...(asked.prompts || []),
    ...asked.sides.flat().flatMap((reply) => [reply.text, reply.answer, reply.error, ...(reply.others || []).map((other) => other.answer)]),
  ]).map(plain).join("\n").toLowerCase();

const namesOf = (item) =>
  [item.task, item.subject, item.name, ...RUNGS.flatMap(({ name }) =>
    [...SIDES.keys()].flatMap((side) => [answerOf(item, name, side), statusOf(item, name, side)]))].join("\n").toLowerCase();

// Items whose texts hold `words`, chunk by chunk; `heard(done, all)` returns false to stop.
const searchTexts = async (words, heard) => {
  const found = new Set();
  for (let chunk = 0; chunk < sizes.length; chunk += 1) {
    if (!heard(chunk, sizes.length)) return null;
    (await chunkOf(chunk)).forEach((texts, k) => {
      if (wordsOf(texts).includes(words)) found.add(inChunks[chunkStarts[chunk] + k]);
    });
  }
  return found;
};
