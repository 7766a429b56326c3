// All items as numbers, and what can be said of one without its texts. An item is { task, i, columns, place }.
const table = await inflate("data-table");
const SIDES = table.sides;
const RUNGS = table.rungs;
const STUDENTS = SIDES.map((_, side) => side).slice(1);
const capital = (text) => text[0].toUpperCase() + text.slice(1);

const items = table.tasks.flatMap((task) =>
  task.items.map((name, i) => ({ task: task.task, name, subject: task.subjects[i] || "", i, columns: task.rungs })),
);

const scoreOf = (item, rung, side) => item.columns[rung]?.scores[side][item.i] ?? null;
const right = (item, rung, side) => (scoreOf(item, rung, side) ?? -1) >= table.right;
const letterOf = (item, rung, side) => item.columns[rung]?.statuses[side][item.i] ?? "-";
const statusOf = (item, rung, side) => table.statuses[letterOf(item, rung, side)];
const answerOf = (item, rung, side) => item.columns[rung]?.answers[side][item.i] || "";
const isFragile = (item, rung, side) => Boolean(item.columns[rung]?.fragile[side].includes(item.i));
const paired = (item, rung) => item.columns[rung]?.paired[item.i] === "1";

// The first side without an answer, or cut: [side, status].
const oddOf = (item) => {
  for (const { name } of RUNGS)
    for (const side of SIDES.keys())
      if (!"s-".includes(letterOf(item, name, side))) return [side, statusOf(item, name, side)];
  return null;
};

const lostUnder = (item, rung, students) =>
  paired(item, rung) && right(item, rung, 0) && students.some((side) => !right(item, rung, side));

// Which items a pill shows: [id, label, test of an item and the students that are looked at].
const title = (name) => RUNGS.find((rung) => rung.name === name)?.title;
const KINDS = [
  ["all", "All", () => true],
  ...table.contrasts.filter(({ of, minus }) => title(of) && title(minus)).map(({ name, of, minus }) => [
    name.replaceAll(" ", "-"),
    `Student: ${title(minus)} right, ${title(of)} wrong`,
    (item, students) => paired(item, of) && paired(item, minus) &&
      students.some((side) => right(item, minus, side) && !right(item, of, side)),
  ]),
  ...[...RUNGS].sort((one, other) => other.replies - one.replies).map((rung) => [
    `lost-${rung.name}`,
    `${capital(rung.title)}: teacher right, student wrong`,
    (item, students) => lostUnder(item, rung.name, students),
  ]),
  ["unanswered", "No answer or cut", (item) => oddOf(item) !== null],
];
