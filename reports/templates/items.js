// The list of items: filters, search, pages.
const PAGE_SIZE = 25;
const TYPING_MS = 150;

// The items that the tool is about come first, where there are any.
const state = { task: "", kind: "all", students: STUDENTS, words: "", matches: null, page: 0 };
if (KINDS[1] && items.some((item) => KINDS[1][2](item, STUDENTS))) state.kind = KINDS[1][0];

const inTask = (item) => !state.task || item.task === state.task;
const show = () => {
  const test = KINDS.find(([name]) => name === state.kind)[2];
  const chosen = items.filter((item) =>
    inTask(item) && test(item, state.students) && (!state.matches || state.matches.has(item)));
  const pages = Math.max(1, Math.ceil(chosen.length / PAGE_SIZE));
  state.page = Math.min(state.page, pages - 1);
  const start = state.page * PAGE_SIZE;
  at("item-count").textContent = `${chosen.length} of ${items.length} items`;
  at("page-now").textContent = `page ${state.page + 1} of ${pages}`;
  at("page-back").disabled = state.page === 0;
  at("page-next").disabled = state.page === pages - 1;
  const listed = chosen.slice(start, start + PAGE_SIZE);
  const cards = listed.map(card);
  at("item-list").replaceChildren(...(cards.length ? cards : [make("p", "empty", "No item matches.")]));
  for (const [name, , counts] of KINDS) {
    at(`count-${name}`).textContent = items.filter((item) => inTask(item) && counts(item, state.students)).length;
  }
  return Promise.all(listed.map(textsOf));
};
const change = (key, value) => {
  state[key] = value;
  state.page = 0;
  show();
};

// Ids and answers of all items at once, then the texts that are here; a new word stops an older search.
const search = async (typed) => {
  const words = typed.toLowerCase().trim();
  state.words = words;
  const say = (text) => (at("search-state").textContent = text);
  if (!words) {
    say("");
    change("matches", null);
    return;
  }
  const names = new Set(items.filter((item) => namesOf(item).includes(words)));
  change("matches", names);
  const heard = (done, all) => {
    if (state.words === words) say(`· found in ids and answers; searching texts, ${Math.round((100 * done) / all)} %`);
    return state.words === words;
  };
  const texts = await searchTexts(words, heard);
  if (!texts || state.words !== words) return;
  const scope = inChunks.length === items.length ? "all texts" : `the texts of ${inChunks.length} of ${items.length} items`;
  say(`· searched: ids, answers and ${scope}`);
  change("matches", new Set([...names, ...texts]));
};

const option = (text, value) => Object.assign(make("option", "", text), { value });
const buildFilters = () => {
  at("filter-task").append(option("all tasks", ""), ...table.tasks.map(({ task }) => option(task, task)));
  at("filter-task").addEventListener("change", (event) => change("task", event.target.value));
  at("student-field").hidden = STUDENTS.length < 2;
  at("filter-student").append(option("any", ""), ...STUDENTS.map((side) => option(SIDES[side].label, side)));
  at("filter-student").addEventListener("change", ({ target }) =>
    change("students", target.value ? [Number(target.value)] : STUDENTS));
  for (const [name, label] of KINDS) {
    const input = make("input", "");
    Object.assign(input, { type: "radio", name: "kind", value: name, checked: name === state.kind });
    input.addEventListener("change", () => change("kind", name));
    const count = make("em", "");
    count.id = `count-${name}`;
    at("filter-kind").append(make("label", "", input, make("span", "", label, count)));
  }
  let typing;
  at("filter-text").addEventListener("input", (event) => {
    clearTimeout(typing);
    state.words = null; // stops a search for what stood there before
    at("search-state").textContent = "· searching";
    typing = setTimeout(() => search(event.target.value), TYPING_MS);
  });
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  const turn = (step) => {
    state.page += step;
    show();
    at("items").scrollIntoView({ block: "start" });
  };
  at("page-back").addEventListener("click", () => turn(-1));
  at("page-next").addEventListener("click", () => turn(1));
};

buildFilters();
await show();
