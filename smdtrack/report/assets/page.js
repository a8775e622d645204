"use strict";
// Picker, hover and zoom of the report. All drawing of the rest of the page is static SVG.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement, byId = id => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  root.classList.add("has-script");

  const decoded = new Map();
  const words = text => {
    if (!decoded.has(text)) {
      const raw = atob(text), bytes = new Uint8Array(raw.length);
      for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
      decoded.set(text, new Uint16Array(bytes.buffer));
    }
    return decoded.get(text);
  };
  const values = curve => {
    const [place, low, high, logarithmic] = curve, levels = words(data.pool[place]);
    return Float64Array.from(levels, level => {
      if (!level) return NaN;
      const value = low + (level - 1) / 65534 * ((high - low) || 1);
      return logarithmic ? Math.exp(value) : value;
    });
  };
  const make = (name, attributes, parent, text) => {
    const element = document.createElementNS(SVG, name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (text !== undefined) element.textContent = text;
    if (parent) parent.appendChild(element);
    return element;
  };
  const short = value => {
    if (!isFinite(value)) return "-";
    const size = Math.abs(value);
    if (size && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
    return String(+value.toPrecision(4));
  };
  const ticks = (low, high, logarithmic) => {
    if (!(high > low)) return [low];
    if (logarithmic) {
      let marks = [];
      for (let e = Math.floor(low); e <= Math.ceil(high); e++)
        for (const digit of [1, 2, 5]) {
          const at = e + Math.log10(digit);
          if (at >= low && at <= high) marks.push(at);
        }
      const decades = marks.filter(mark => Math.abs(mark - Math.round(mark)) < 1e-9);
      if (decades.length >= 3) marks = decades;
      if (marks.length >= 2) return marks.filter((_, i) => i % Math.ceil(marks.length / 6) === 0);
      return ticks(10 ** low, 10 ** high, false).filter(value => value > 0).map(Math.log10);
    }
    const rough = (high - low) / 5, size = 10 ** Math.floor(Math.log10(rough));
    const step = size * [1, 2, 2.5, 5, 10].find(digit => size * digit >= rough);
    const found = [];
    for (let i = Math.ceil(low / step); i <= Math.floor(high / step + 1e-9); i++) found.push(i * step);
    return found;
  };

  const state = {weight: 0, axis: "steps", zoom: null};
  const axisOf = run => state.axis === "epochs" ? run.steps.map(step => step / run.epoch)
    : state.axis === "time-constants" ? run.passed : run.steps;
  const axisName = () => ({steps: "step", epochs: "epoch", "time-constants": "time constants"})[state.axis];

  const charts = byId("charts"), panels = [];
  for (const plan of data.charts) {
    const figure = document.createElement("figure");
    const title = document.createElement("figcaption");
    title.textContent = plan.title + (plan.unit_name ? `, ${plan.unit_name}` : "");
    const svg = make("svg", {class: "live", role: "img", "aria-label": plan.title});
    const read = document.createElement("output");
    figure.append(title, svg, read);
    charts.appendChild(figure);
    panels.push({plan, svg, read, figure});
  }

  const draw = panel => {
    const {plan, svg, read} = panel;
    const width = Math.max(300, svg.clientWidth || 500), height = panel === panels[0] ? 300 : 200;
    const left = 54, right = 10, top = 8, bottom = 22;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    svg.replaceChildren();
    const many = data.runs.length > 1, lines = [];
    data.runs.forEach((run, r) => plan.curves.forEach(([family, style, label], c) => {
      const curve = data.curves[r][family] && data.curves[r][family][state.weight];
      if (!curve) return;
      lines.push({x: axisOf(run), y: values(curve), label: many ? `${run.letter} ${label}` : label,
        style: `${style} c${many ? r % 8 : [0, 1, 2][style === "dotted" ? 2 : style === "dashed" ? 1 : 0]}`});
    }));
    panel.lines = lines;
    panel.figure.hidden = !lines.length;
    if (!lines.length) return;
    let [from, to] = state.zoom || [Infinity, -Infinity];
    if (!state.zoom) for (const line of lines) { from = Math.min(from, line.x[0]); to = Math.max(to, line.x[line.x.length - 1]); }
    const logarithmic = plan.logarithmic;
    const level = value => logarithmic ? Math.log10(value) : value;
    let low = Infinity, high = -Infinity;
    const seen = [];
    for (const line of lines) for (let i = 0; i < line.y.length; i++) {
      const value = level(line.y[i] * plan.unit);
      if (line.x[i] >= from && line.x[i] <= to && isFinite(value)) seen.push(value);
    }
    for (const value of seen) { low = Math.min(low, value); high = Math.max(high, value); }
    if (!isFinite(low)) { low = 0; high = 1; }
    if (logarithmic && seen.length) {
      const middle = Float64Array.from(seen).sort()[seen.length >> 1];
      low = Math.max(low, middle - data.below);
      high = Math.min(high, middle + data.above);
    }
    const margin = (high - low) * .06 || (logarithmic ? .05 : Math.abs(high) * .05 || 1);
    low -= margin; high += margin;
    const px = x => left + (x - from) / ((to - from) || 1) * (width - left - right);
    const py = value => top + (high - value) / (high - low) * (height - top - bottom);
    for (const tick of ticks(low, high, logarithmic)) {
      make("path", {class: "grid", d: `M${left} ${py(tick).toFixed(1)}H${width - right}`}, svg);
      make("text", {class: "end", x: left - 5, y: py(tick) + 4}, svg, short(logarithmic ? 10 ** tick : tick));
    }
    for (const tick of ticks(from, to, false)) 
      make("text", {class: px(tick) > width - 2 * right ? "end" : "middle", x: px(tick), y: height - 5}, svg, short(tick));
    const id = `clip-${panels.indexOf(panel)}`;
    const clip = make("clipPath", {id}, svg);
    make("rect", {x: left, y: 0, width: width - left - right, height: height - bottom}, clip);
    const area = make("g", {"clip-path": `url(#${id})`}, svg);
    for (const line of lines) {
      line.gap = usual(line.y);
      let path = "", absent = Infinity;
      for (let i = 0; i < line.y.length; i++) {
        const value = Math.max(level(line.y[i] * plan.unit), low - 1);
        if (!isFinite(value)) { absent++; continue; }
        path += (absent > line.gap ? "M" : "L") + px(line.x[i]).toFixed(1) + " " + py(value).toFixed(1);
        absent = 0;
      }
      make("path", {class: line.style, d: path}, area);
    }
    panel.scale = {from, to, left, right, width, height, px};
    panel.cursor = make("path", {class: "cursor", d: ""}, svg);
    panel.brush = make("rect", {class: "brush", y: top, height: height - top - bottom, width: 0, x: 0}, svg);
    read.replaceChildren(...lines.map(line => keyOf(line)));
  };
  const keyOf = (line, text) => {
    const span = document.createElement("span");
    span.className = "key";
    const mark = make("svg", {viewBox: "0 0 28 8", "aria-hidden": "true"});
    make("path", {class: line.style, d: "M1 4H27"}, mark);
    span.append(mark, text || line.label);
    return span;
  };
  // Some values exist at every other sample only: how many points may be missing before a curve is interrupted.
  const usual = ys => {
    const gaps = [];
    let last = -1;
    for (let i = 0; i < ys.length; i++) if (isFinite(ys[i])) { if (last >= 0) gaps.push(i - last); last = i; }
    gaps.sort((one, other) => one - other);
    return gaps.length ? 3 * gaps[gaps.length >> 1] : 0;
  };
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (xs[middle] < x) low = middle; else high = middle; }
    return x - xs[low] < xs[high] - x ? low : high;
  };
  const near = (line, x) => {
    const at = nearest(line.x, x);
    for (let by = 0; by <= line.gap; by++) for (const i of [at - by, at + by]) if (isFinite(line.y[i])) return line.y[i];
    return NaN;
  };
  const where = (panel, event) => {
    const box = panel.svg.getBoundingClientRect(), scale = panel.scale;
    const at = (event.clientX - box.left) * scale.width / box.width;
    const inside = Math.min(Math.max(at, scale.left), scale.width - scale.right);
    return scale.from + (inside - scale.left) / (scale.width - scale.left - scale.right) * (scale.to - scale.from);
  };
  let drag = null;
  for (const panel of panels) {
    panel.svg.addEventListener("pointermove", event => {
      if (!panel.scale) return;
      const x = where(panel, event);
      for (const other of panels) {
        if (other.figure.hidden) continue;
        other.cursor.setAttribute("d", `M${other.scale.px(x).toFixed(1)} 8V${other.scale.height - 22}`);
        other.read.replaceChildren(...other.lines.map(line => {
          const value = near(line, x) * other.plan.unit;
          return keyOf(line, `${line.label} ${short(value)}`);
        }), `${axisName()} ${short(x)}`);
      }
      if (drag && drag.panel === panel) {
        const [one, two] = [panel.scale.px(drag.x), panel.scale.px(x)];
        panel.brush.setAttribute("x", Math.min(one, two));
        panel.brush.setAttribute("width", Math.abs(one - two));
      }
    });
    panel.svg.addEventListener("pointerdown", event => { if (panel.scale) drag = {panel, x: where(panel, event)}; });
    panel.svg.addEventListener("pointerup", event => {
      if (!drag || drag.panel !== panel) return;
      const x = where(panel, event), [from, to] = [Math.min(drag.x, x), Math.max(drag.x, x)];
      drag = null;
      if (to - from > (panel.scale.to - panel.scale.from) / 100) zoom([from, to]); else panel.brush.setAttribute("width", 0);
    });
    panel.svg.addEventListener("pointerleave", () => {
      drag = null;
      for (const other of panels) if (!other.figure.hidden) {
        other.cursor.setAttribute("d", "");
        other.brush.setAttribute("width", 0);
        other.read.replaceChildren(...other.lines.map(line => keyOf(line)));
      }
    });
    panel.svg.addEventListener("dblclick", () => zoom(null));
  }
  const zoom = range => {
    state.zoom = range;
    byId("reset").disabled = !range;
    panels.forEach(draw);
  };

  const list = byId("weights"), search = byId("search");
  const fill = () => {
    const wanted = search.value.trim().toLowerCase();
    const found = data.weights.map((name, i) => [name, i]).filter(([name]) => name.toLowerCase().includes(wanted));
    list.replaceChildren(...found.map(([name, i]) => {
      const option = document.createElement("option");
      option.value = i;
      option.textContent = name + (data.labels[i] ? `  ${data.labels[i]}` : "");
      option.title = name;
      option.selected = i === state.weight;
      return option;
    }));
    byId("found").textContent = found.length === data.weights.length ? `${found.length} weights` : `${found.length} of ${data.weights.length} weights`;
    return found;
  };
  const pick = (index, scroll) => {
    state.weight = index;
    byId("picked").textContent = data.weights[index];
    for (const option of list.options) option.selected = +option.value === index;
    const chosen = list.selectedOptions[0];
    if (chosen && chosen.scrollIntoView) list.scrollTop = Math.max(0, chosen.offsetTop - list.clientHeight / 2);
    panels.forEach(draw);
    mark();
    try { history.replaceState(null, "", `#weight=${encodeURIComponent(data.weights[index])}`); } catch (error) { /* file: pages may refuse */ }
    if (scroll) byId("weight").scrollIntoView();
  };
  const move = by => {
    const shown = [...list.options].map(option => +option.value);
    if (!shown.length) return;
    const at = shown.indexOf(state.weight);
    pick(shown[Math.min(shown.length - 1, Math.max(0, at < 0 ? 0 : at + by))]);
  };
  search.addEventListener("input", () => { const found = fill(); if (found.length && !found.some(([, i]) => i === state.weight)) pick(found[0][1]); });
  list.addEventListener("change", () => pick(+list.value));
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("input, select, textarea");
    if (event.target === search && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
      event.preventDefault();
      move(event.key === "ArrowDown" ? 1 : -1);
    } else if (!typing && event.target.closest("svg.map") && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
      event.preventDefault();
      move(event.key === "ArrowDown" ? 1 : -1);
    } else if (!typing && (event.key === "ArrowRight" || event.key === "ArrowLeft")) {
      event.preventDefault();
      move(event.key === "ArrowRight" ? 1 : -1);
    } else if (!typing && event.key === "/") {
      event.preventDefault();
      search.focus();
    } else if (event.key === "Escape") zoom(null);
  });
  document.addEventListener("click", event => {
    const button = event.target.closest("[data-weight]");
    if (button) pick(+button.dataset.weight, true);
  });
  byId("reset").addEventListener("click", () => zoom(null));
  byId("axis").addEventListener("change", event => { state.axis = event.target.value; zoom(null); });
  byId("axis").value = state.axis = data.axis;

  const tip = byId("tip");
  const maps = [...document.querySelectorAll("svg.map")].map(svg => {
    const map = data.maps[+svg.dataset.run], frame = svg.querySelector(".hit"), cursor = make("rect", {class: "cursor"}, svg);
    const box = ["x", "y", "width", "height"].map(name => +frame.getAttribute(name));
    const cell = event => {
      const bounds = frame.getBoundingClientRect();
      const column = Math.floor((event.clientX - bounds.left) / bounds.width * map.first.length);
      const row = Math.floor((event.clientY - bounds.top) / bounds.height * map.rows.length);
      return [Math.min(Math.max(row, 0), map.rows.length - 1), Math.min(Math.max(column, 0), map.first.length - 1)];
    };
    frame.addEventListener("pointermove", event => {
      const [row, column] = cell(event), value = words(map.values)[row * map.first.length + column];
      const steps = map.first[column] === map.last[column] ? `step ${map.first[column]}` : `steps ${map.first[column]} to ${map.last[column]}`;
      tip.textContent = `${data.weights[map.rows[row]]}\n${steps}\n` + (value ? `measured / line ${(value / 1000).toFixed(3)}` : "no line");
      tip.hidden = false;
      tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
      tip.style.top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8) + "px";
    });
    frame.addEventListener("pointerleave", () => { tip.hidden = true; });
    frame.addEventListener("click", event => { tip.hidden = true; pick(map.rows[cell(event)[0]], true); });
    frame.addEventListener("keydown", event => { if (event.key === "Enter") byId("weight").scrollIntoView(); });
    return {map, box, cursor, svg};
  });
  const mark = () => {
    for (const {map, box, cursor, svg} of maps) {
      const row = map.rows.indexOf(state.weight), size = box[3] / map.rows.length;
      cursor.setAttribute("visibility", row < 0 ? "hidden" : "visible");
      if (row >= 0) {
        cursor.setAttribute("x", box[0]); cursor.setAttribute("y", box[1] + row * size);
        cursor.setAttribute("width", box[2]); cursor.setAttribute("height", size);
      }
      for (const label of svg.querySelectorAll("text[data-weight]")) label.classList.toggle("picked", +label.dataset.weight === state.weight);
    }
  };
  let resized = 0;
  addEventListener("resize", () => { cancelAnimationFrame(resized); resized = requestAnimationFrame(() => panels.forEach(draw)); });
  addEventListener("beforeprint", () => { document.querySelectorAll("details").forEach(one => { one.dataset.was = one.open; one.open = true; }); });
  addEventListener("afterprint", () => { document.querySelectorAll("details").forEach(one => { one.open = one.dataset.was === "true"; }); });

  fill();
  let asked = -1;
  try { asked = data.weights.indexOf(decodeURIComponent((location.hash.match(/^#weight=(.*)/) || [])[1])); } catch (error) { /* not ours */ }
  pick(asked >= 0 ? asked : data.start);
  root.dataset.drawn = "yes";
})();
