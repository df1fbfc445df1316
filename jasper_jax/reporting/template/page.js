"use strict";
// Charts, tables that sort, and the queries gained and lost. Text from data is set as text, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const light = {
    "@c0": "#0072b2", "@c1": "#d55e00", "@c2": "#009e73", "@c3": "#b3578f", "@c4": "#3a9ad9", "@c5": "#b98000",
    "@ink": "#1d2530", "@faint": "#667080", "@grid": "#e7eaee", "@paper": "#ffffff",
    "@density": [[0, "#e8f1f8"], [0.35, "#9dc6e3"], [0.7, "#3a86bd"], [1, "#08306b"]],
    "@disagreement": [[0, "#cfdbe6"], [0.45, "#f0b54f"], [1, "#b4280b"]],
  };
  const night = {
    "@c0": "#5db7f0", "@c1": "#ff8a4c", "@c2": "#3ecf9f", "@c3": "#e59ac4", "@c4": "#a6d5f7", "@c5": "#f2bd4b",
    "@ink": "#e4e8ee", "@faint": "#98a2b1", "@grid": "#2a323d", "@paper": "#14181e",
    "@density": [[0, "#1a2a3a"], [0.35, "#24557d"], [0.7, "#4f9fd6"], [1, "#dff1ff"]],
    "@disagreement": [[0, "#3b4856"], [0.45, "#c98a2b"], [1, "#ff6a45"]],
  };

  // ---------------------------------------------------------------- charts

  function themed(value) {
    if (typeof value === "string" && value.startsWith("@")) return (dark.matches ? night : light)[value] ?? value;
    if (Array.isArray(value)) return value.map(themed);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, themed(item)]));
    }
    return value;
  }

  const axis = { gridcolor: "@grid", linecolor: "@grid", zeroline: false, automargin: true, tickfont: { size: 11 } };

  function draw(place) {
    const figures = data.charts[place.dataset.chart];
    const figure = figures[Number(place.dataset.shown || 0)];
    const given = figure.layout;
    const entries = figure.data.filter((trace) => trace.showlegend !== false && trace.name);
    const legend = given.showlegend !== false && entries.length > 1;
    const widest = 62 + 6.2 * Math.max(...entries.map((trace) => trace.name.length), 0);
    const columns = Math.max(1, Math.floor((place.clientWidth - 60) / widest));
    const room = legend ? 21 * Math.ceil(entries.length / columns) : 0; // of the legend, at most
    const bare = given.xaxis?.visible === false;
    place.dataset.height ||= parseInt(place.style.height, 10);
    const height = Number(place.dataset.height);
    place.style.height = `${height + room}px`;
    const layout = {
      ...given,
      height: height + room,
      xaxis: { ...axis, ...given.xaxis },
      yaxis: { ...axis, ...given.yaxis },
      showlegend: legend,
      legend: { orientation: "h", traceorder: "normal", yref: "container", y: 0, yanchor: "bottom", x: 0, font: { size: 11 } },
      margin: bare ? { l: 0, r: 0, t: 8, b: 8 } : { l: 46, r: 12, t: 22, b: 46 + room },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: "@ink", size: 12, family: getComputedStyle(document.body).fontFamily },
      hoverlabel: { align: "left", bgcolor: "@paper", bordercolor: "@faint", font: { color: "@ink" } },
      hovermode: "closest",
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    };
    const options = { responsive: true, displaylogo: false, displayModeBar: false };
    Plotly.react(place, themed(figure.data), themed(layout), options).then(() => {
      const needed = Math.ceil(place.querySelector(".legend .bg")?.getBoundingClientRect().height ?? 0);
      if (!legend || needed >= room - 4) return;
      place.style.height = `${height + needed}px`;
      Plotly.relayout(place, { height: height + needed, "margin.b": 46 + needed });
    });
  }

  const charts = [...document.querySelectorAll(".chart")];
  for (const place of charts) draw(place);
  for (const select of document.querySelectorAll("select[data-for]")) {
    select.addEventListener("change", () => {
      for (const other of select.closest(".charts").querySelectorAll("select")) { // by dimension and by bytes: the same
        const place = document.getElementById(`chart-${other.dataset.for}`);
        place.dataset.shown = other.value = select.value;
        draw(place);
      }
    });
  }
  dark.addEventListener("change", () => charts.forEach(draw));
  let width = innerWidth;
  addEventListener("resize", () => {
    if (width !== innerWidth) charts.forEach(draw);
    width = innerWidth;
  });

  // ---------------------------------------------------------------- tables

  const order = new Intl.Collator(undefined, { numeric: true });

  function sort(header) {
    const table = header.closest("table");
    const column = header.cellIndex;
    const number = header.classList.contains("number");
    const before = header.getAttribute("aria-sort");
    const down = before === "none" ? number : before === "ascending";
    for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows].map((row) => [row, row.cells[column]]);
    rows.sort(([, a], [, b]) => {
      if (number) {
        const [x, y] = [a, b].map((cell) => ("value" in cell.dataset ? Number(cell.dataset.value) : NaN));
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // absent ones come last
        return down ? y - x : x - y;
      }
      return (down ? -1 : 1) * order.compare(a.textContent, b.textContent);
    });
    table.tBodies[0].append(...rows.map(([row]) => row));
  }

  function tabbed(table) {
    const cell = (c) => (c.dataset.value ?? c.textContent).trim().replace(/\s+/g, " ");
    return [...table.rows].map((row) => [...row.cells].map(cell).join("\t")).join("\n");
  }

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const area = Object.assign(document.createElement("textarea"), { value: text });
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy"); // where a file may not use the clipboard
      area.remove();
      return done;
    }
  }

  function prepare(table) {
    for (const header of table.tHead.rows[0].cells) header.firstElementChild.addEventListener("click", () => sort(header));
  }
  document.querySelectorAll("table").forEach(prepare);
  for (const button of document.querySelectorAll("button.copy")) {
    button.addEventListener("click", async () => {
      const done = await copy(tabbed(button.closest(".table").querySelector("table")));
      button.textContent = done ? "Copied" : "Not allowed";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  }

  // ---------------------------------------------------------------- queries gained and lost

  function element(name, attributes = {}, ...children) {
    const made = Object.assign(document.createElement(name), attributes);
    made.append(...children);
    return made;
  }

  function ranking(test, example, provider) {
    const right = new Set(example.answers);
    const list = element("ol");
    for (const passage of example.first[provider]) {
      const item = element("li", { className: right.has(passage) ? "answer" : "" });
      item.append(element("span", { className: "clamped" }, test.passages[passage]));
      item.addEventListener("click", () => item.firstElementChild.classList.toggle("clamped"));
      list.append(item);
    }
    const name = data.providers[provider];
    const score = element("small", {}, ` nDCG@10 ${example.ndcg10[provider].toFixed(2)}`);
    return element("div", { className: "side" }, element("h3", {}, name, score), list);
  }

  function card(test, example, student, teacher, open) {
    const change = example.ndcg10[student] - example.ndcg10[teacher];
    const delta = `${change < 0 ? "−" : "+"}${Math.abs(change).toFixed(2)}`;
    const seen = new Set([...example.first[student], ...example.first[teacher]]);
    const unseen = example.answers.filter((passage) => !seen.has(passage));
    const sides = element("div", { className: "sides" }, ranking(test, example, student), ranking(test, example, teacher));
    if (unseen.length) {
      const title = "Relevant, and in neither list";
      const texts = unseen.map((passage) => element("p", {}, test.passages[passage]));
      sides.append(element("div", { className: "answers side" }, element("h3", {}, title), ...texts));
    }
    const mark = element("span", { className: `delta ${change < 0 ? "lost" : "gained"}` }, delta);
    return element("details", { open }, element("summary", {}, mark, element("b", {}, example.query)), sides);
  }

  function choice(label, options, changed) {
    const select = element("select", {}, ...options.map((text, value) => element("option", { value }, text)));
    select.addEventListener("change", changed);
    return [select, element("label", {}, label, select)];
  }

  const browser = document.getElementById("browser");
  if (browser) {
    const tests = Object.keys(data.tests);
    const first = data.tests[tests[0]].comparisons;
    const students = [...new Set(first.map((c) => c.student))];
    const teachers = [...new Set(first.map((c) => c.teacher))];
    const named = (providers) => providers.map((provider) => data.providers[provider]);
    const list = element("div", { className: "examples" });
    const show = () => {
      const test = data.tests[tests[which.value]];
      const [student, teacher] = [students[by.value], teachers[against.value]];
      const found = test.comparisons.find((c) => c.student === student && c.teacher === teacher);
      const examples = side.value === "0" ? found.most_lost : found.most_gained;
      const none = "No query of this test.";
      list.replaceChildren(
        ...examples.map((k, i) => card(test, test.examples[k], student, teacher, i === 0)),
        ...(examples.length ? [] : [element("p", { className: "missing" }, none)]),
      );
    };
    const [side, sideLabel] = choice("Queries", ["lost", "gained"], show);
    const [which, whichLabel] = choice("of", tests, show);
    const [by, byLabel] = choice("by", named(students), show);
    const [against, againstLabel] = choice("against", named(teachers), show);
    browser.append(element("div", { className: "choices" }, sideLabel, whichLabel, byLabel, againstLabel), list);
    show();
  }

  // ---------------------------------------------------------------- the map

  const neighbours = document.getElementById("neighbours");
  if (neighbours) {
    const place = document.getElementById("chart-map");
    let chosen = data.most[0];
    const show = () => {
      const text = data.map[chosen];
      const sides = data.pairs[Number(place.dataset.shown || 0)].map((provider) => {
        const list = element("ol", {}, ...text.nearest[provider].map((other) => element("li", {}, data.map[other].text)));
        return element("div", { className: "side" }, element("h3", {}, data.providers[provider]), list);
      });
      const title = element("summary", {}, element("small", {}, "Nearest to: "), element("b", {}, text.text));
      neighbours.replaceChildren(element("details", { open: true }, title, element("div", { className: "sides" }, ...sides)));
    };
    place.on("plotly_click", (event) => {
      chosen = event.points[0].customdata;
      show();
    });
    document.querySelector('select[data-for="map"]')?.addEventListener("change", show);
    show();
  }
})();
