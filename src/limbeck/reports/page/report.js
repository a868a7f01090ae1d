"use strict";
(async () => {
  // gzipped text
  const unpack = async (id) => {
    const packed = atob(document.getElementById(id).textContent);
    const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(plain).text();
  };
  const root = document.documentElement;
  const phone = () => window.innerWidth <= 640;

  // light and dark: the system's choice until the reader makes one
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const setTheme = (dark) => {
    root.dataset.theme = dark ? "dark" : "light";
    root.style.colorScheme = root.dataset.theme;
    button.textContent = dark ? "Light" : "Dark";
    document.querySelectorAll(".plot.drawn").forEach((plot) => draw(plot));
  };

  // figures: drawn when they come into sight, in the colours of the page
  const themed = (layout) => {
    const style = getComputedStyle(root);
    const [ink, grid, line, panel] = ["--ink", "--grid", "--line", "--panel"].map((name) =>
      style.getPropertyValue(name).trim());
    const found = structuredClone(layout);
    Object.assign(found, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true,
      font: { color: ink, size: phone() ? 11 : 13, family: "system-ui, sans-serif" },
      hoverlabel: { ...found.hoverlabel, bgcolor: panel, bordercolor: line, font: { color: ink } },
    });
    for (const name of Object.keys(found)) {
      if (/^[xy]axis\d*$/.test(name)) {
        Object.assign(found[name], { gridcolor: grid, linecolor: line, zerolinecolor: grid });
      }
    }
    // names below a narrow figure need room of their own
    found.margin = { ...found.margin, b: 56 };
    return found;
  };
  const draw = (plot) => {
    const { data: traces, layout } = plot.figure;
    plot.classList.add("drawn");
    const names = traces.filter((trace) => trace.name && trace.showlegend !== false).length;
    const longest = Math.max(...traces.map((trace) => (trace.name || "").length));
    const letter = 0.55 * (phone() ? 11 : 13);
    const across = Math.max(1, Math.floor((plot.clientWidth - 80) / (letter * longest + 48)));
    const styled = themed(layout);
    const below = names > 1 ? 21 * Math.ceil(names / across) + 8 : 0;
    styled.height = (layout.height || 420) + below;
    styled.margin.b += below;
    styled.legend = { ...styled.legend, y: -64 / (styled.height - styled.margin.b - styled.margin.t) };
    Plotly.react(plot, structuredClone(traces), styled, {
      responsive: true, displaylogo: false, displayModeBar: phone() ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    });
  };
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        seen.unobserve(entry.target);
        draw(entry.target);
      }
    }
  }, { rootMargin: "400px" });
  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text) made.textContent = text;
    return made;
  };
  const clear = (holder) => {
    holder.querySelectorAll(".plot").forEach((plot) => {
      seen.unobserve(plot);
      Plotly.purge(plot);
    });
    holder.replaceChildren();
  };
  const show = (holder, figure) => {
    const box = element("figure");
    box.dataset.kind = figure.kind;
    const plot = element("div", "plot");
    plot.figure = figure.figure;
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", figure.title);
    plot.style.minHeight = `${figure.figure.layout.height || 420}px`;
    box.append(element("h4", "", figure.title), element("p", "read", figure.text), plot);
    holder.append(box);
    seen.observe(plot);
  };

  // accuracy against a cost: one cost at a time
  const costs = (figures, select, holder) => {
    const axes = new Map(figures.map(({ kind, figure }) => [kind, figure.layout.xaxis.title.text]));
    const chosen = select.dataset.chosen; // by the reader; another cell may not have it
    select.replaceChildren(...[...axes].map(([kind, name]) => {
      const option = element("option", "", name);
      option.value = kind;
      return option;
    }));
    if (axes.has(chosen)) select.value = chosen;
    const update = () => {
      clear(holder);
      figures.filter(({ kind }) => kind === select.value).forEach((figure) => show(holder, figure));
    };
    select.onchange = () => {
      select.dataset.chosen = select.value;
      update();
    };
    select.closest(".controls").hidden = axes.size < 2;
    update();
  };

  // one cell
  const part = (kind) => kind.split("-")[0];
  const showCell = ({ figures, missing }) => {
    document.getElementById("cell-missing").replaceChildren(
      ...(missing.length ? [element("p", "say", missing.join(" "))] : []));
    document.querySelectorAll("#cell [data-kinds]").forEach((holder) => {
      const own = figures.filter((figure) => part(figure.kind) === holder.dataset.kinds);
      document.querySelector(`#cell [data-part="${holder.dataset.kinds}"]`).hidden = !own.length;
      if (holder.dataset.kinds === "pareto") {
        costs(own, document.getElementById("cell-axis"), holder);
        return;
      }
      clear(holder);
      if (holder.classList.contains("grid")) {
        own.forEach((figure) => show(holder, figure));
        return;
      }
      for (const group of new Set(own.map((figure) => figure.group))) {
        const grid = element("div", "grid");
        holder.append(grid);
        own.filter((figure) => figure.group === group).forEach((figure) => show(grid, figure));
      }
    });
  };

  // tables: sorted by a click on a heading
  const value = (row, column) => {
    const cell = row.cells[column];
    if (!("value" in cell.dataset)) return cell.textContent.trim().toLowerCase();
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };
  const compare = (a, b) =>
    typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
  document.querySelectorAll("table.sortable").forEach((table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const press = element("button", "", head.textContent);
      press.type = "button";
      head.replaceChildren(press);
      press.onclick = () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows].map((row) => [value(row, column), row]);
        // what is not known stays at the end either way
        rows.sort(([a], [b]) =>
          a === null || b === null ? (a === null) - (b === null) : (down ? -1 : 1) * compare(a, b));
        table.tBodies[0].append(...rows.map(([, row]) => row));
      };
    });
  });

  // filters of the table
  const filters = [...document.querySelectorAll("#filters [data-filter]")];
  const rows = [...document.querySelectorAll("#runs tbody tr")];
  const filter = () => {
    let count = 0;
    for (const row of rows) {
      const fits = filters.every(({ dataset, value: wanted }) =>
        !wanted || (dataset.filter === "any"
          ? Object.values(row.dataset).join(" ").toLowerCase().includes(wanted.toLowerCase())
          : row.dataset[dataset.filter] === wanted));
      row.hidden = !fits;
      count += fits;
    }
    document.getElementById("count").textContent = `${count} of ${rows.length} rows`;
    document.getElementById("nothing").hidden = count > 0;
  };
  filters.forEach((control) => control.addEventListener("input", filter));
  document.getElementById("clear").onclick = () => {
    filters.forEach((control) => { control.value = ""; });
    filter();
  };

  const cell = document.getElementById("cell-choice");
  button.onclick = () => setTheme(root.dataset.theme !== "dark");
  system.addEventListener("change", (change) => setTheme(change.matches));
  setTheme(system.matches);
  filter();
  const [plotly, text] = await Promise.all([unpack("plotly"), unpack("data")]).catch((error) => {
    document.getElementById("broken").hidden = false;
    throw error;
  });
  const library = element("script");
  library.textContent = plotly;
  document.head.append(library); // runs it
  const data = JSON.parse(text);
  document.getElementById("no-overall").hidden = data.overall.length > 0;
  costs(data.overall, document.getElementById("cost-axis"), document.getElementById("overall"));
  cell.onchange = () => showCell(data.cells[cell.value]);
  cell.onchange();
})();
