// Shows a recording: a timeline with a column for each task, and the state at each step, put together from differences.
// `data.rs` writes what is read here.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const steps = data.steps.task.length;
  const LINE = 18, PAD = 4, LANE = 9, LANES = 10;
  // The column of numbers, and what a column of a task leaves at its right for arrows.
  const NUMBERS = 64, GUTTER = 22;

  // ---- What was packed -----------------------------------------------------------------------------------------------

  const ascending = (distances) => {
    const out = new Int32Array(distances.length);
    let at = 0;
    for (let i = 0; i < distances.length; i++) out[i] = at += distances[i];
    return out;
  };
  const ends = (counts) => {
    const out = new Int32Array(counts.length + 1);
    for (let i = 0; i < counts.length; i++) out[i + 1] = out[i] + counts[i];
    return out;
  };
  const noteStep = ascending(data.notes.step);
  const lockFrom = ascending(data.locks.from);
  const lockTo = lockFrom.map((from, i) => from + data.locks.length[i]);
  const changeEnd = ends(data.changes.count);
  const changeCell = Int32Array.from(data.changes.cell);
  const changeValue = Int32Array.from(data.changes.value);
  // The first thing of a sorted list that is not below.
  const lowerBound = (list, wanted) => {
    let low = 0, high = list.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (list[middle] < wanted) low = middle + 1; else high = middle;
    }
    return low;
  };
  const notesOf = (step) => [lowerBound(noteStep, step), lowerBound(noteStep, step + 1)];
  const number = (step) => step + 1 - data.setup;
  const flag = (step, bit) => (data.steps.flags[step] & bit) !== 0;
  const stopped = (step) => (data.steps.flags[step] >> 2) - 1;
  const hex = (n) => "0x" + n.toString(16);
  const words = (step) => {
    const s = data.steps;
    const object = data.objects[s.object[step]], place = data.strings[s.place[step]];
    const verb = data.strings[s.verb[step]];
    if (object === "none") return [verb, "", ""];
    return [verb, object, place];
  };
  const taskColour = (task) => `var(--t${task === 0 ? 0 : 1 + (task - 1) % 6})`;

  // ---- States --------------------------------------------------------------------------------------------------------

  const rowTable = data.rows.table, rowGfn = data.rows.gfn, rowGfns = data.rows.gfns;
  const rowCell = new Int32Array(rowTable.length + 1);
  for (let i = 0; i < rowTable.length; i++) rowCell[i + 1] = rowCell[i] + data.tables[rowTable[i]].columns.length;
  const cells = rowCell[rowTable.length];
  const tableRows = data.tables.map((_, t) => [lowerBound(rowTable, t), lowerBound(rowTable, t + 1)]);
  const rowOf = (cell) => lowerBound(rowCell, cell + 1) - 1;
  // Looks between two kept states: enough that all together take little memory.
  const every = Math.max(256, Math.ceil(data.changes.count.length * cells / 8e6));
  const kept = [];
  // What each change found there, and what each cell had last, for names.
  const changeOld = new Int32Array(changeCell.length), lastValue = new Int32Array(cells);
  {
    const state = new Int32Array(cells);
    for (let look = 0; look < data.changes.count.length; look++) {
      for (let i = changeEnd[look]; i < changeEnd[look + 1]; i++) {
        const cell = changeCell[i];
        changeOld[i] = state[cell];
        state[cell] = changeValue[i];
        if (changeValue[i] !== 0) lastValue[cell] = changeValue[i];
      }
      if (look % every === 0) kept.push(state.slice());
    }
  }
  // Columns whose changes a row of the timeline tells, by table: 1 cells, 2 whole rows that come and go.
  const TOLD = {
    counters: { 1: 1 }, vcpus: { 2: 1 }, cache: { 0: 2, 4: 1 }, map: { 1: 1, 4: 1 }, rmp: { 0: 2, 1: 1, 2: 1, 3: 1, 4: 1 },
    td: { 1: 1, 3: 1, 4: 1 }, sept: { 0: 2, 3: 1, 4: 1 }, pamt: { 0: 2, 1: 1 }, pkvm: { 0: 2, 1: 1, 2: 1, 4: 1 },
  };
  // What a row of a table is called, by its values: what goes before it where the table is not named, and the name.
  const CALLED = {
    cache: ["page ", (value) => `${value(0)}[${value(1)}]`], map: ["gfn ", (value) => value(0)], rmp: ["RMP frame ", (value) => value(0)],
    sept: ["", (value) => `gfn ${value(1)}, level ${value(2)}`], pamt: ["PAMT frame ", (value) => value(0)], pkvm: ["pKVM frame ", (value) => value(0)],
    stage2: ["", (value) => `${value(0)}, gfn ${value(1)}, level ${value(2)}`],
  };
  // What of an old value is not also at the end of the new one.
  const shorter = (old, now) => {
    const [a, b] = [old.split(", "), now.split(", ")];
    while (a.length > 1 && b.length > 1 && a[a.length - 1] === b[b.length - 1]) { a.pop(); b.pop(); }
    return a.join(", ");
  };
  // What else is said of it when it comes.
  const COMES = { cache: [2], rmp: [1], sept: [3, 4], pamt: [1], pkvm: [1, 4] };
  const isTold = new Uint8Array(cells);
  for (let row = 0; row < rowTable.length; row++) {
    const id = data.tables[rowTable[row]].id;
    const told = TOLD[id] ?? {};
    // Sums of what other rows tell.
    if (id === "counters" && /^(leafs|frames) /.test(data.values[lastValue[rowCell[row]]])) continue;
    for (const [column, how] of Object.entries(told)) isTold[rowCell[row] + Number(column)] = how;
  }
  const tells = (i) => {
    const told = isTold[changeCell[i]], old = changeOld[i], now = changeValue[i];
    return told === 2 ? (old === 0) !== (now === 0) : told === 1 && old !== 0 && now !== 0 && old !== now;
  };
  const DELTAS = 3;
  // What of the state a step changes, as far as a row tells it: a text for each row of a table.
  const deltas = (step) => {
    const out = new Map();
    let left = 0;
    for (let i = changeEnd[step + 1]; i < (changeEnd[step + 2] ?? 0); i++) {
      if (!tells(i)) continue;
      const cell = changeCell[i], row = rowOf(cell), first = rowCell[row];
      if (!out.has(row) && out.size === DELTAS) { left++; continue; }
      const table = data.tables[rowTable[row]], value = (at) => data.values[lastValue[first + at]];
      const [kind, called] = CALLED[table.id] ?? ["", () => value(0)];
      const name = kind + called(value);
      const old = data.values[changeOld[i]], now = data.values[changeValue[i]];
      if (isTold[cell] === 2) {
        const more = changeOld[i] === 0 ? (COMES[table.id] ?? []).map((at) => data.values[changedTo(step, first + at)]).filter(Boolean) : [];
        const whole = table.id === "sept" ? "Secure EPT of " : "";
        out.set(row, (changeOld[i] === 0 ? "+ " : "− ") + whole + name + (more.length ? ": " + more.join("; ") : ""));
      } else {
        const before = out.get(row);
        out.set(row, (before ? before + ", " : name + (table.columns.length > 2 ? ", " : "")) +
          `${table.columns.length > 2 ? table.columns[cell - first] : ""}: ${shorter(old, now) || "none"} → ${now || "none"}`);
      }
    }
    const texts = [...out.values()].map((text) => "Δ " + text);
    if (left > 0) texts.push(`Δ and ${left} more`);
    return texts;
  };
  // The value that a step gives to a cell.
  const changedTo = (step, cell) => {
    for (let i = changeEnd[step + 1]; i < changeEnd[step + 2]; i++) if (changeCell[i] === cell) return changeValue[i];
    return 0;
  };
  let shown = { look: 0, state: kept.length ? kept[0].slice() : new Int32Array(0) };
  // The state after `look` steps.
  const stateAt = (look) => {
    const frame = Math.floor(look / every);
    if (look < shown.look || frame > Math.floor(shown.look / every)) shown = { look: frame * every, state: kept[frame].slice() };
    for (; shown.look < look; shown.look++) {
      for (let i = changeEnd[shown.look + 1]; i < changeEnd[shown.look + 2]; i++) shown.state[changeCell[i]] = changeValue[i];
    }
    return shown.state;
  };

  // ---- What is shown -------------------------------------------------------------------------------------------------

  const filter = { tasks: new Set(data.tasks.keys()), gfn: null, notable: true };
  // 0 is before the first step; n is after step n.
  let position = 0;
  let list = [];       // indexes of the steps that are shown
  let guest = -1;      // the step that is shown only because it is the current one
  let tops = null;     // where each begins, in pixels

  const touches = (step, gfn) => {
    const from = data.steps.gfn[step];
    if (from >= 0 && from <= gfn && gfn < from + data.steps.gfns[step]) return true;
    for (let i = changeEnd[step + 1]; i < (changeEnd[step + 2] ?? 0); i++) {
      const row = rowOf(changeCell[i]);
      if (rowGfn[row] >= 0 && rowGfn[row] <= gfn && gfn < rowGfn[row] + rowGfns[row]) return true;
    }
    return false;
  };
  // Whether the line of the scenario that a step performs stands above its row: it does above the first that is shown.
  const lineBegins = new Uint8Array(steps);
  const collides = (step) => (data.pair ? data.pair.indexOf(step) : -1);
  // What a row says below its operation.
  const extras = (step) => {
    const out = [];
    const [from, to] = notesOf(step);
    for (let i = from; i < to; i++) {
      const kind = data.notes.kind[i], text = data.notes.text[i];
      if (kind === 1) out.push(["trace", data.strings[text]]);
      if (kind === 6) out.push(["call", data.strings[text]]);
      if (kind === 2) {
        const line = data.lines[text];
        out.push([line.problem ? "answer bad" : "answer", "⇒ " + (line.answer ?? "") + (line.problem ? "  " + line.problem : "")]);
      }
      if (kind === 4) out.push(["stop", "ends"]);
      if (kind === 5) out.push(["answer bad", "✗ " + data.strings[text]]);
    }
    for (const text of flows.get(step) ?? []) out.unshift(text);
    out.unshift(...deltas(step).map((text) => ["delta", text]));
    const side = collides(step);
    if (side === 0) out.unshift(["collide", `① collides with ② (step ${number(data.pair[1])})`]);
    if (side === 1) out.unshift(["collide", `② collides with ① (step ${number(data.pair[0])})`]);
    return out;
  };
  // What arrows say at their ends, by step.
  const flows = new Map();
  for (const [kind, from, to] of data.arrows) {
    const text = kind === 0 ? `asks for a flush, for what step ${number(from)} took away` : `flushes, as step ${number(from)} asked`;
    const known = flows.get(to) ?? [];
    if (!known.some(([its]) => its === "flow" + kind)) flows.set(to, [...known, ["flow" + kind, text]]);
  }
  const hasExtras = new Uint8Array(steps);
  for (let i = 0; i < noteStep.length; i++) {
    if (data.notes.kind[i] !== 0 && data.notes.kind[i] !== 3) hasExtras[noteStep[i]] = 1;
  }
  for (const step of [...data.pair ?? [], ...flows.keys()]) hasExtras[step] = 1;
  for (let step = 0; step < steps; step++) {
    for (let i = changeEnd[step + 1]; i < (changeEnd[step + 2] ?? 0); i++) {
      if (tells(i)) { hasExtras[step] = 1; break; }
    }
  }
  // Texts are broken into lines here, not by the browser: rows that are not drawn have a height too. Their letters are all of one width.
  const SMALL = 11 / 12, WRAPPED = 4;
  let letter = 7.2;        // pixels of a letter of 12 pixels
  const room = [];         // pixels for text, by task
  const broken = (text, size, task) => {
    const width = Math.max(16, Math.floor(room[task] / (letter * size)) - 1);
    if (text.length <= width) return [text];
    const out = [];
    let line = "";
    for (let word of text.split(" ")) {
      while (word.length > width - 2) {
        if (line.trim()) out.push(line);
        line = "  ";
        out.push(line + word.slice(0, width - 2));
        word = word.slice(width - 2);
      }
      if (line === "" || line === "  ") line += word;
      else if (line.length + 1 + word.length <= width) line += " " + word;
      else {
        out.push(line);
        line = "  " + word;
      }
    }
    if (line.trim()) out.push(line);
    if (out.length > WRAPPED) out.splice(WRAPPED - 1, out.length, out[WRAPPED - 1] + " …");
    return out;
  };
  // Whether the function around an operation stands on a line of its own.
  const opBreaks = (step) => {
    const [verb, object, place] = words(step);
    const site = data.sites[data.steps.site[step]][1].length + (flag(step, 2) ? 15 : 0);
    return letter * (verb.length + 1 + object.length) + letter * SMALL * ((place ? place.length + 1 : 0) + (site ? site + 2 : 0)) > room[data.steps.task[step]];
  };
  const lineOf = (step) => broken(data.lines[data.steps.line[step]].text, 1, data.steps.task[step]);
  // Lines of text that a row has; 0 is not known.
  const textLines = new Uint8Array(steps);
  const height = (step) => {
    if (textLines[step] === 0) {
      let count = 1 + (stopped(step) >= 0 ? 1 : 0) + (opBreaks(step) ? 1 : 0);
      if (lineBegins[step]) count += lineOf(step).length;
      if (hasExtras[step]) for (const [, text] of extras(step)) count += broken(text, SMALL, data.steps.task[step]).length;
      textLines[step] = Math.min(255, count);
    }
    return PAD + LINE * textLines[step];
  };

  const refilter = () => {
    list = [];
    const all = filter.tasks.size === data.tasks.length;
    const about = filter.gfn === null ? null : aboutFrame(filter.gfn);
    for (let step = 0; step < steps; step++) {
      if (!all && !filter.tasks.has(data.steps.task[step])) continue;
      if (filter.notable && !flag(step, 1)) continue;
      if (about && !about[step]) continue;
      list.push(step);
    }
    guest = -1;
    lineBegins.fill(0);
    const last = data.tasks.map(() => -1);
    for (const step of list) {
      const task = data.steps.task[step], line = data.steps.line[step];
      if (line >= 0 && last[task] !== line) lineBegins[step] = 1;
      last[task] = line;
    }
    fixLanes();
    makeRoom();
    layOut();
  };
  // Steps that have to do with a guest frame: those that touch it, and of the lines that do, what they call below the kernel and what they
  // answer; where they led to by arrows; and what went wrong.
  const aboutFrame = (gfn) => {
    const about = new Uint8Array(steps), lines = new Set();
    for (let step = 0; step < steps; step++) {
      if (!touches(step, gfn)) continue;
      about[step] = 1;
      lines.add(data.steps.line[step]);
    }
    for (let i = 0; i < noteStep.length; i++) {
      const step = noteStep[i], kind = data.notes.kind[i];
      if (kind === 5 || (kind === 2 && lines.has(data.notes.text[i])) || (kind === 6 && lines.has(data.steps.line[step]))) about[step] = 1;
    }
    for (const [, from, to] of data.arrows) if (about[from]) about[to] = 1;
    for (const step of data.pair ?? []) about[step] = 1;
    return about;
  };
  // How much room texts have, now that the columns are known.
  const makeRoom = () => {
    const wide = view.width - NUMBERS;
    for (const task of data.tasks.keys()) {
      const column = task === 0 || columns.length === 0 ? wide : wide / columns.length;
      room[task] = Math.max(60, column - (6 + LANE * lanes[task]) - GUTTER);
    }
    textLines.fill(0);
  };
  const layOut = () => {
    tops = new Float64Array(list.length + 1);
    for (let i = 0; i < list.length; i++) tops[i + 1] = tops[i] + height(list[i]);
    $("canvas").style.height = tops[list.length] + "px";
    drawnFrom = -1;
  };
  // The current step has a row, whatever the filters say.
  const invite = (step) => {
    if (guest === step) return;
    const before = guest;
    if (guest >= 0) list.splice(lowerBound(list, guest), 1);
    guest = -1;
    const at = lowerBound(list, step);
    if (step >= 0 && list[at] !== step) {
      list.splice(at, 0, step);
      guest = step;
    }
    if (guest !== before) layOut();
  };

  // ---- Locks: lanes --------------------------------------------------------------------------------------------------

  // Each lock gets a lane of its task's column: the first that is free.
  const lane = new Uint8Array(lockFrom.length);
  const lanes = data.tasks.map(() => 0);
  {
    const busy = data.tasks.map(() => []);
    for (let i = 0; i < lockFrom.length; i++) {
      const task = data.locks.task[i];
      let at = busy[task].findIndex((until) => until < lockFrom[i]);
      if (at < 0) at = busy[task].length;
      busy[task][at] = lockTo[i];
      lane[i] = Math.min(at, LANES - 1);
      lanes[task] = Math.max(lanes[task], lane[i] + 1);
    }
  }
  // The longest lock that begins in each thousand: where to start looking for those that reach a step.
  const BLOCK = 1024;
  const reach = [];
  for (let i = 0; i < lockFrom.length; i++) {
    const block = Math.floor(i / BLOCK);
    reach[block] = Math.max(reach[block] ?? -1, lockTo[i]);
  }
  const locksWithin = (from, to) => {
    const out = [];
    const end = lowerBound(lockFrom, to + 1);
    for (let block = 0; block * BLOCK < end; block++) {
      if (reach[block] < from) continue;
      for (let i = block * BLOCK; i < Math.min(end, (block + 1) * BLOCK); i++) if (lockTo[i] >= from) out.push(i);
    }
    return out;
  };

  // ---- Columns -------------------------------------------------------------------------------------------------------

  let columns = [];
  const fixLanes = () => {
    // A task without steps among those shown needs no column.
    const present = new Set();
    for (let i = 0; i < list.length; i++) present.add(data.steps.task[list[i]]);
    columns = [...data.tasks.keys()].filter((task) => task > 0 && filter.tasks.has(task) && present.has(task));
    // What comes before and after the threads runs alone: its rows go across all columns.
    if (columns.length === 0) columns = [0];
    const template = NUMBERS + "px " + columns.map(() => "minmax(0, 1fr)").join(" ");
    document.documentElement.style.setProperty("--template", template);
    const head = $("columns");
    head.style.gridTemplateColumns = template;
    head.replaceChildren(element("div", { role: "columnheader" }, "step"));
    for (const task of columns) {
      const cell = element("div", { role: "columnheader" }, data.tasks[task]);
      cell.style.setProperty("--task", taskColour(task));
      head.append(cell);
    }
  };

  const element = (tag, attributes, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes ?? {})) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };

  // ---- The timeline --------------------------------------------------------------------------------------------------

  // Asking the document for these costs a layout; so they are kept.
  const view = { top: 0, height: 0, width: 0, moves: false };
  const measure = () => {
    view.height = $("timeline").clientHeight;
    view.width = $("rows").clientWidth;
    view.top = $("timeline").scrollTop;
    letter = $("letters").getBoundingClientRect().width / 100 || letter;
  };
  const scrollTo = (top) => {
    view.top = Math.max(0, Math.min(top, tops[list.length] - view.height));
    if (!view.moves) requestAnimationFrame(() => { view.moves = false; $("timeline").scrollTop = view.top; });
    view.moves = true;
  };
  // Rows that are in the document, by step.
  let drawn = new Map();
  let drawnFrom = -1, drawnTo = -1, current = null;
  const draw = () => {
    const bottom = view.top + view.height;
    const from = printing ? 0 : Math.max(0, lowerBound(tops, view.top) - 3);
    const to = Math.min(list.length, printing ? 400 : lowerBound(tops, bottom) + 3);
    if (from !== drawnFrom || to !== drawnTo) {
      // Nothing is the same if the list is another.
      if (drawnFrom < 0) drawn = new Map();
      [drawnFrom, drawnTo] = [from, to];
      const locks = from < to ? locksWithin(list[from], list[to - 1]) : [];
      const now = new Map();
      for (let i = from; i < to; i++) now.set(list[i], drawn.get(list[i]) ?? row(i, locks));
      const rows = $("rows");
      for (const old of [...rows.children]) if (now.get(Number(old.dataset.step)) !== old) old.remove();
      let next = rows.firstChild;
      for (const made of now.values()) {
        if (made === next) next = next.nextSibling;
        else rows.insertBefore(made, next);
      }
      drawn = now;
      drawArrows(from, to);
    }
    const made = drawn.get(position - 1) ?? null;
    if (made !== current) {
      current?.classList.remove("current");
      current?.removeAttribute("aria-current");
      made?.classList.add("current");
      made?.setAttribute("aria-current", "step");
      current = made;
    }
  };

  const row = (i, locks) => {
    const step = list[i];
    const task = data.steps.task[step];
    const made = element("div", { role: "row", id: "row" + number(step), class: "row" });
    made.dataset.step = step;
    made.style.top = tops[i] + "px";
    made.style.height = tops[i + 1] - tops[i] + "px";
    made.style.gridTemplateColumns = "var(--template)";
    if (collides(step) >= 0) made.classList.add("collides");
    if (stopped(step) >= 0) made.classList.add("stops");
    const hidden = step - 1 - (i > 0 ? list[i - 1] : -1);
    const count = element("div", { class: "number", role: "rowheader" });
    if (hidden > 0) count.append(element("span", { class: "hidden", title: hidden + " steps before it are not shown" }, "⋮"));
    count.append(String(number(step)).replace("-", "−"));
    made.append(count);
    for (const column of task === 0 ? [0] : columns) {
      const cell = element("div", { class: "cell", role: "cell" });
      if (task === 0) cell.style.gridColumn = "2 / -1";
      cell.style.setProperty("--task", taskColour(column));
      cell.style.setProperty("--lanes", 6 + LANE * lanes[column] + "px");
      for (const lock of locks) {
        if (data.locks.task[lock] !== column || lockFrom[lock] > step || lockTo[lock] < step) continue;
        const how = data.strings[data.locks.how[lock]];
        const bar = element("div", { class: "lock" + (how === "exclusively" ? "" : " shared"), title: data.strings[data.locks.name[lock]] + ", " + how });
        // A lock that was taken or released in a step that is not shown begins or ends between rows.
        if (lockFrom[lock] === step) bar.classList.add("from");
        if (lockTo[lock] === step) bar.classList.add("to");
        bar.style.left = 3 + LANE * lane[lock] + "px";
        cell.append(bar);
      }
      if (column === task) fill(cell, step);
      made.append(cell);
    }
    return made;
  };

  // A text of a row, on as many lines as it needs.
  const text = (kind, lines, title) => {
    const made = element("div", { class: kind, title }, lines.join("\n"));
    made.style.height = LINE * lines.length + "px";
    return made;
  };
  const fill = (cell, step) => {
    const task = data.steps.task[step];
    if (stopped(step) >= 0) cell.append(element("div", { class: "stop" }, data.tasks[stopped(step)] + " is stopped, " + data.tasks[task] + " goes on"));
    if (lineBegins[step]) {
      const line = data.lines[data.steps.line[step]];
      cell.append(text("line", lineOf(step), "line " + line.number + ": " + line.text));
    }
    const [verb, object, place] = words(step);
    const op = element("div", { class: "op" }, verb + " ", element("b", {}, object), element("span", { class: "place" }, place ? " " + place : ""));
    const site = data.sites[data.steps.site[step]];
    op.title = `${verb} ${object} ${place}, in ${site[1]} (${site[0]})` + (flag(step, 2) ? ", by the store buffer" : "");
    const around = (site[1] ? "  " + site[1] : "") + (flag(step, 2) ? " (store buffer)" : "");
    cell.append(op);
    if (opBreaks(step)) cell.append(element("div", { class: "op" }, element("span", { class: "place" }, around)));
    else op.append(element("span", { class: "place" }, around));
    for (const [kind, words] of extras(step)) cell.append(text(kind, broken(words, SMALL, task), words));
  };

  // Where a step is in the list, or where it would be.
  const placeOf = (step) => lowerBound(list, step);

  const SVG = "http://www.w3.org/2000/svg";
  const drawArrows = (from, to) => {
    const svg = $("arrows");
    svg.setAttribute("height", tops[list.length]);
    const parts = [];
    if (from < to && columns.length > 0) {
      const width = view.width - NUMBERS;
      const left = (task) => NUMBERS + width * columns.indexOf(task) / columns.length;
      const right = (task) => left(task) + width / columns.length;
      const [low, high] = [list[from], list[to - 1]];
      for (const [kind, a, b] of data.arrows) {
        if (b < low || a > high) continue;
        const [ta, tb] = [data.steps.task[a], data.steps.task[b]];
        if (!columns.includes(ta) || !columns.includes(tb)) continue;
        const [ia, ib] = [placeOf(a), placeOf(b)];
        if (ia >= list.length || ib >= list.length) continue;
        const middle = (i) => (tops[i] + tops[i + 1]) / 2;
        const [ya, yb] = [middle(ia), middle(ib)];
        let path, end;
        if (ta === tb) {
          const x = right(ta) - 14;
          path = `M${x},${ya} C${x + 12},${ya} ${x + 12},${yb} ${x},${yb}`;
          end = `M${x + 6},${yb - 5} L${x},${yb} L${x + 6},${yb + 5}`;
        } else {
          const forward = left(ta) < left(tb);
          const xa = forward ? right(ta) - 14 : left(ta) + 2, xb = forward ? left(tb) + 2 : right(tb) - 14;
          const bend = forward ? 26 : -26;
          path = `M${xa},${ya} C${xa + bend},${ya} ${xb - bend},${yb} ${xb},${yb}`;
          end = `M${xb - bend / 4},${yb - 5} L${xb},${yb} L${xb - bend / 4},${yb + 5}`;
        }
        for (const d of [path, end]) {
          const line = document.createElementNS(SVG, "path");
          line.setAttribute("d", d);
          line.setAttribute("class", "a" + kind);
          parts.push(line);
        }
      }
    }
    svg.replaceChildren(...parts);
  };

  const scrollToCurrent = () => {
    const at = Math.min(Math.max(0, placeOf(position - 1)), list.length - 1);
    if (at < 0) return;
    const [top, bottom] = [tops[at], tops[at + 1]];
    const margin = Math.min(120, view.height / 4);
    if (top < view.top + margin) scrollTo(top - margin);
    else if (bottom > view.top + view.height - margin) scrollTo(bottom - view.height + margin);
  };

  // ---- The state -----------------------------------------------------------------------------------------------------

  const open = new Map();
  const more = new Set();
  // Rows of a table that are drawn before somebody asks for more, and of one that is open only because something in it changed.
  const ROWS = 60, FEW = 10;
  const aboutGfn = (row) => filter.gfn === null || rowGfn[row] < 0 || (rowGfn[row] <= filter.gfn && filter.gfn < rowGfn[row] + rowGfns[row]);

  const drawState = () => {
    const before = position > 0 ? stateAt(position - 1).slice() : new Int32Array(cells);
    const state = stateAt(position);
    const changed = new Map();
    for (let i = changeEnd[position]; i < changeEnd[position + 1]; i++) {
      const cell = changeCell[i];
      if (before[cell] === state[cell]) continue;
      const row = rowOf(cell);
      if (!changed.has(row)) changed.set(row, []);
      changed.get(row).push(cell);
    }
    drawStep();
    drawChanges(changed, before, state);
    const parts = [heldNow()];
    data.tables.forEach((table, t) => {
      const [from, to] = tableRows[t];
      if (from < to) parts.push(section(table, from, to, changed, before, state));
    });
    $("state").replaceChildren(...parts);
  };

  const details = (id, title, note, count, changes, isOpen) => {
    const made = element("details", { "data-table": id });
    made.open = open.get(id) ?? isOpen;
    const summary = element("summary", { title: note }, title + " ", element("small", {}, String(count)));
    if (changes > 0) summary.append(" ", element("mark", {}, changes + " changed"));
    summary.addEventListener("click", () => open.set(id, !made.open));
    made.append(summary);
    return made;
  };

  const heldNow = () => {
    const step = position - 1;
    const held = position > 0 ? locksWithin(step, step).filter((lock) => lockFrom[lock] <= step && lockTo[lock] > step) : [];
    const made = details("locks", "Locks held", "locks and read sections, by whom and how", held.length, 0, true);
    if (held.length === 0) return made;
    const table = element("table", {});
    for (const lock of held) {
      const task = data.locks.task[lock];
      const swatch = element("span", { class: "swatch" });
      swatch.style.setProperty("--task", taskColour(task));
      const tr = element("tr", lockFrom[lock] === step ? { class: "added" } : {},
        element("td", {}, swatch, data.strings[data.locks.name[lock]]), element("td", {}, data.tasks[task]),
        element("td", {}, data.strings[data.locks.how[lock]]), element("td", {}, "since " + number(lockFrom[lock])));
      table.append(tr);
    }
    made.append(table);
    return made;
  };

  const OPEN = new Set(["map", "counters", "vcpus", "tlb", "cache", "rmp", "td", "sept", "pamt", "pkvm"]);
  const section = (table, from, to, changed, before, state) => {
    const rows = [];
    let count = 0, changes = 0;
    for (let row = from; row < to; row++) {
      const present = state[rowCell[row]] !== 0;
      if (present) count++;
      if (changed.has(row)) changes++;
      if ((present || changed.has(row)) && aboutGfn(row)) rows.push(row);
    }
    const made = details(table.id, table.title, table.note, count, changes, OPEN.has(table.id) || changes > 0);
    if (rows.length === 0) return made;
    if (!made.open && !printing) {
      // Filled when somebody opens it.
      made.addEventListener("toggle", () => { if (made.open) drawState(); }, { once: true });
      return made;
    }
    const drawn = element("table", {}, element("thead", {}, element("tr", {}, ...table.columns.map((name) => element("th", { scope: "col" }, name)))));
    const body = element("tbody", {});
    let part = rows;
    if (rows.length > FEW && !OPEN.has(table.id) && !open.has(table.id) && !more.has(table.id)) part = rows.filter((row) => changed.has(row));
    else if (rows.length > ROWS && !more.has(table.id)) {
      // Those that changed, and what is around the first of them.
      const first = Math.max(0, rows.findIndex((row) => changed.has(row)) - ROWS / 2);
      part = rows.filter((row, i) => changed.has(row) || (i >= first && i < first + ROWS)).slice(0, 4 * ROWS);
    }
    for (const row of part) body.append(stateRow(row, table, changed.get(row), before, state));
    drawn.append(body);
    made.append(drawn);
    if (part.length < rows.length) {
      const button = element("button", { type: "button" }, `all ${rows.length} rows`);
      button.addEventListener("click", () => { more.add(table.id); drawState(); });
      made.append(button);
    }
    return made;
  };

  const stateRow = (row, table, changed, before, state) => {
    const first = rowCell[row];
    const gone = state[first] === 0, added = before[first] === 0 && !gone;
    const tr = element("tr", gone ? { class: "gone" } : added ? { class: "added" } : {});
    for (let column = 0; column < table.columns.length; column++) {
      const cell = first + column;
      const value = data.values[gone ? before[cell] : state[cell]];
      const td = element("td", {});
      if (!gone && !added && changed?.includes(cell)) {
        td.className = "changed";
        if (data.values[before[cell]] !== "") td.append(element("span", { class: "old" }, data.values[before[cell]]), " ");
      }
      td.append(value);
      tr.append(td);
    }
    return tr;
  };

  const drawChanges = (changed, before, state) => {
    const table = element("table", {});
    let count = 0;
    for (const [row, list] of changed) {
      if (!aboutGfn(row)) continue;
      if (++count > 24) continue;
      const spec = data.tables[rowTable[row]], first = rowCell[row];
      const gone = state[first] === 0, added = before[first] === 0;
      const text = (from) => spec.columns.map((_, i) => data.values[from[first + i]]).filter((value) => value !== "").join("  ");
      const td = element("td", {});
      if (added) td.append(element("b", {}, "+ "), text(state));
      else if (gone) td.append(element("b", {}, "− "), element("span", { class: "old" }, text(before)));
      else {
        const value = (at) => data.values[state[first + at]];
        td.append((CALLED[spec.id]?.[1](value) ?? value(0)) + (spec.id in CALLED ? ", " : ": "));
        list.filter((cell) => cell !== first || list.length === 1).forEach((cell, i) => {
          if (i > 0) td.append(", ");
          const old = data.values[before[cell]];
          td.append(spec.columns[cell - first] + " ");
          if (old !== "") td.append(element("span", { class: "old" }, old), " → ");
          td.append(element("b", {}, data.values[state[cell]] || "none"));
        });
      }
      table.append(element("tr", {}, element("td", {}, spec.title), td));
    }
    const head = element("h2", {}, position === 0 ? "The state before the first step" : count === 0 ? "Nothing changed" : "What changed");
    if (count > 24) table.append(element("tr", {}, element("td", {}), element("td", {}, `and ${count - 24} more, which are marked below`)));
    $("changes").replaceChildren(head, ...(position === 0 ? [] : [table]));
  };

  const drawStep = () => {
    const box = $("step");
    if (position === 0) {
      box.replaceChildren(element("div", { class: "what" }, "before the first step"));
      box.style.removeProperty("--task");
      return;
    }
    const step = position - 1, task = data.steps.task[step];
    box.style.setProperty("--task", taskColour(task));
    const [verb, object, place] = words(step);
    const site = data.sites[data.steps.site[step]];
    const line = data.steps.line[step] >= 0 ? data.lines[data.steps.line[step]] : null;
    const parts = [
      element("div", { class: "what" }, `${number(step)}  ${data.tasks[task]} ${verb} ${object}${place ? " [" + place + "]" : ""}`),
      element("div", { class: "at" }, (site[1] ? "in " + site[1] + ", " : "") + site[0] + (flag(step, 2) ? ", by the store buffer" : "") + (line ? `; line ${line.number}: ${line.text}` : "")),
    ];
    const [from, to] = notesOf(step);
    if (from < to) {
      const list = element("ul", {});
      for (let i = from; i < to && i < from + 30; i++) {
        const text = data.notes.text[i];
        const line = data.lines[text];
        const item = [
          () => "releases " + data.strings[text],
          () => data.strings[text],
          () => `line ${line.number} answers ${line.answer ?? ""}${line.problem ? ": " + line.problem : ""}`,
          () => "starts " + data.tasks[text],
          () => "ends",
          () => data.strings[text],
          () => data.strings[text],
        ][data.notes.kind[i]]();
        list.append(element("li", {}, item));
      }
      parts.push(list);
    }
    // What the others are about to do: their next step.
    for (const other of data.tasks.keys()) {
      if (other === task || other === 0) continue;
      const next = nextOf(other, step + 1);
      if (next < 0) continue;
      const [v, o, p] = words(next);
      const name = element("span", {}, data.tasks[other]);
      parts.push(element("div", { class: "next" }, name, ` is about to: ${v} ${o}${p ? " [" + p + "]" : ""}`));
    }
    box.replaceChildren(...parts);
  };
  const ofTask = data.tasks.map(() => []);
  for (let step = 0; step < steps; step++) ofTask[data.steps.task[step]].push(step);
  const nextOf = (task, from) => ofTask[task][lowerBound(ofTask[task], from)] ?? -1;

  // ---- Going somewhere -----------------------------------------------------------------------------------------------

  const go = (to, keep) => {
    performance.mark("go");
    position = Math.max(0, Math.min(steps, to));
    $("slider").value = position;
    invite(position - 1);
    const text = position === 0 ? "before the first" : `step ${number(position - 1)}`;
    $("where").textContent = `${text} of ${number(steps - 1)}`;
    $("slider").setAttribute("aria-valuetext", text);
    scrollToCurrent();
    draw();
    drawState();
    if (position > 0) {
      const step = position - 1;
      $("live").textContent = `step ${number(step)}: ${data.tasks[data.steps.task[step]]} ${words(step).join(" ")}`;
    }
    if (!keep) remember();
    performance.clearMeasures("step");
    performance.measure("step", "go");
  };
  // To the next or previous step that is shown.
  const move = (by) => {
    const current = position - 1;
    let at = lowerBound(list, current);
    const on = list[at] === current;
    if (by > 0) at = on || current < 0 && list[at] !== 0 ? at + by - (on ? 0 : 1) : at + by - 1;
    else at = at + by;
    if (at < 0) return go(0);
    if (at >= list.length) return list.length ? go(list[list.length - 1] + 1) : undefined;
    go(list[at] + 1);
  };
  const sameTask = (by) => {
    if (position === 0) return move(1);
    const own = ofTask[data.steps.task[position - 1]];
    const at = lowerBound(own, position - 1) + by;
    if (at >= 0 && at < own.length) go(own[at] + 1);
  };

  const remember = () => {
    const parts = ["step=" + (position === 0 ? "start" : number(position - 1))];
    if (filter.tasks.size !== data.tasks.length) parts.push("task=" + [...filter.tasks].map((task) => encodeURIComponent(data.tasks[task])).join(","));
    if (filter.gfn !== null) parts.push("gfn=" + hex(filter.gfn));
    if (!filter.notable) parts.push("all");
    history.replaceState(null, "", "#" + parts.join("&"));
  };
  const start = () => data.pair ? data.pair[1] + 1 : Math.min(steps, data.setup + 1);
  const fromHash = () => {
    const wanted = new Map(location.hash.slice(1).split("&").filter(Boolean).map((part) => part.split("=")));
    if (wanted.has("task")) {
      const names = (wanted.get("task") ?? "").split(",").map(decodeURIComponent);
      const tasks = [...data.tasks.keys()].filter((task) => names.includes(data.tasks[task]));
      if (tasks.length > 0) filter.tasks = new Set(tasks);
    }
    if (wanted.has("gfn")) setGfn(wanted.get("gfn"));
    if (wanted.has("all")) filter.notable = false;
    showFilters();
    refilter();
    const step = wanted.get("step");
    if (step === "start") go(0, true);
    else go(step !== undefined && /^-?\d+$/.test(step) ? Number(step) + data.setup : start(), true);
  };
  const setGfn = (text) => {
    const trimmed = (text ?? "").trim();
    const value = trimmed === "" ? null : Number(trimmed);
    const bad = value !== null && !(Number.isInteger(value) && value >= 0);
    $("gfn").setAttribute("aria-invalid", bad);
    if (!bad) filter.gfn = value;
  };
  const showFilters = () => {
    for (const box of $("tasks").querySelectorAll("input")) box.checked = filter.tasks.has(Number(box.value));
    $("gfn").value = filter.gfn === null ? "" : hex(filter.gfn);
    $("notable").checked = filter.notable;
  };
  const filtered = () => { refilter(); go(position); };

  // ---- The head ------------------------------------------------------------------------------------------------------

  const head = () => {
    $("title").textContent = data.title;
    $("teaches").textContent = data.teaches ?? "";
    $("teaches").hidden = !data.teaches;
    const verdict = $("verdict");
    verdict.textContent = data.expected ? "as expected" : data.failure?.invariant ? data.failure.invariant + " does not hold" : "not as expected";
    verdict.classList.toggle("bad", !data.expected);
    verdict.title = data.ending;
    for (const [name, value] of [...data.facts, ["steps", String(steps)], ["events", data.digest]]) {
      $("facts").append(element("div", {}, element("dt", {}, name), element("dd", {}, value)));
    }
    for (const [task, name] of data.tasks.entries()) {
      const box = element("input", { type: "checkbox", value: task });
      box.addEventListener("change", () => {
        if (box.checked) filter.tasks.add(task); else filter.tasks.delete(task);
        filtered();
      });
      const label = element("label", {}, box, element("span", {}, name));
      label.style.setProperty("--task", taskColour(task));
      $("tasks").append(label);
    }
    $("slider").max = steps;
    failure();
  };
  const failure = () => {
    const box = $("failure");
    if (data.expected) return;
    box.hidden = false;
    box.append(element("div", { class: "seen" }, data.ending));
    const f = data.failure;
    if (!f) return;
    if (f.rule) box.append(element("div", { class: "rule" }, "The rule: " + f.rule));
    for (const mutant of f.mutants) box.append(element("div", { class: "rule" }, "Switched off: " + mutant));
    if (!f.collision) return;
    const sides = element("div", { class: "sides" });
    [f.collision.first, f.collision.second].forEach((side, at) => {
      const task = data.tasks.indexOf(side.task);
      const button = element("button", { type: "button" }, `step ${side.step}`);
      button.addEventListener("click", () => go(data.pair[at] + 1));
      const made = element("div", { class: "side" },
        element("div", {}, at === 0 ? "① " : "② ", button, ` ${side.task} ${side.access} `, element("code", {}, side.object)),
        element("div", { class: "rule" }, (side.function ? `in ${side.function}, ` : "") + `${side.file}:${side.line}`),
        element("div", { class: "rule" }, `performing ${side.performing}`),
        element("div", { class: "rule" }, side.holds.length ? "holding " + side.holds.join("; ") : "holding nothing"));
      made.style.setProperty("--task", taskColour(Math.max(0, task)));
      sides.append(made);
    });
    const common = f.collision.common.length ? `Both hold ${f.collision.common.join(" and ")}.` : "No lock is held by both.";
    box.append(sides, element("div", { class: "verdict" }, `${common} In the other order of these two steps the failure does not appear.`));
  };

  const theme = () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  };

  // ---- Keys and pointers ---------------------------------------------------------------------------------------------

  const keys = {
    j: () => move(1), ArrowDown: () => move(1), ArrowRight: () => move(1),
    k: () => move(-1), ArrowUp: () => move(-1), ArrowLeft: () => move(-1),
    PageDown: () => move(10), PageUp: () => move(-10),
    Home: () => go(0), End: () => go(steps),
    "]": () => sameTask(1), "[": () => sameTask(-1),
    c: () => { if (data.pair) go((position === data.pair[0] + 1 ? data.pair[1] : data.pair[0]) + 1); },
    a: () => { filter.notable = !filter.notable; showFilters(); filtered(); },
    t: theme,
    "?": () => $("help").showModal(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
    if (event.target.matches("input[type=text]")) return;
    // The slider and the boxes keep the arrows and the space that are theirs.
    if (event.target.matches("input") && event.key.length > 1) return;
    const act = keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  $("first").addEventListener("click", keys.Home);
  $("last").addEventListener("click", keys.End);
  $("previous").addEventListener("click", keys.k);
  $("next").addEventListener("click", keys.j);
  $("slider").addEventListener("input", () => go(Number($("slider").value)));
  $("gfn").addEventListener("change", () => { setGfn($("gfn").value); filtered(); });
  $("notable").addEventListener("change", () => { filter.notable = $("notable").checked; filtered(); });
  $("theme").addEventListener("click", theme);
  $("help-open").addEventListener("click", keys["?"]);
  $("rows").addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (row) go(Number(row.dataset.step) + 1);
  });
  $("timeline").addEventListener("scroll", () => requestAnimationFrame(() => {
    if (!view.moves) view.top = $("timeline").scrollTop;
    draw();
  }), { passive: true });
  addEventListener("resize", () => { measure(); makeRoom(); layOut(); draw(); });
  addEventListener("hashchange", fromHash);
  let printing = false;
  addEventListener("beforeprint", () => { printing = true; drawnFrom = -1; draw(); drawState(); });
  addEventListener("afterprint", () => { printing = false; drawnFrom = -1; draw(); drawState(); });

  head();
  measure();
  fromHash();
  document.documentElement.dataset.ready = "yes";
})();
