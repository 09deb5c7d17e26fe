// The dashboard: asks the daemon every two seconds, and draws what it says. No library, no other server.
"use strict";

const PERIOD_MS = 2000;
const SHOWN_S = 600;
const GAP_S = 15; // a model without requests writes no records: its lines are broken there
const DECISIONS = 60;
const KEY = "roma-token";

const byId = (id) => document.getElementById(id);
const records = [];
let last = 0;

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  Object.assign(element, properties);
  element.append(...children);
  return element;
}

function draw(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

async function ask(path) {
  const token = sessionStorage.getItem(KEY);
  const answer = await fetch(path, { headers: token ? { Authorization: `Bearer ${token}` } : {}, cache: "no-store" });
  if (answer.status === 401 || answer.status === 403) {
    throw Object.assign(new Error((await answer.json()).error), { refused: true });
  }
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  return answer.json();
}

async function look() {
  try {
    const [host, statuses] = await Promise.all([ask("v2/mlscale/host"), ask("v2/mlscale/models")]);
    const since = last || host.time - SHOWN_S;
    keep((await ask(`v2/mlscale/journal?since=${since}`)).records, host.time);
    byId("entry").hidden = true;
    byId("host").textContent = `${host.cores} cores, divided by ${host.cpu}`;
    byId("connection").textContent = statuses.models.length ? "live" : "live; no models are deployed";
    showGpus(host.gpus || []);
    show(statuses.models, host.time);
  } catch (error) {
    if (error.refused) admit(error.message);
    else byId("connection").textContent = `no answer (${error.message}); what is shown is old`;
  }
  setTimeout(look, PERIOD_MS);
}

function admit(reason) {
  byId("connection").textContent = "not let in";
  byId("refusal").textContent = sessionStorage.getItem(KEY) ? reason : "";
  byId("entry").hidden = false;
  byId("journal").hidden = true;
  byId("graphics").hidden = true;
  byId("models").replaceChildren();
}

byId("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("token").value.trim());
  byId("token").value = "";
  byId("refusal").textContent = "";
  byId("connection").textContent = "asking …";
});

function keep(found, now) {
  for (const record of found) {
    if (record.at > last) records.push(record);
  }
  if (records.length) last = records[records.length - 1].at;
  while (records.length && records[0].at < now - SHOWN_S) records.shift();
}

function show(models, now) {
  byId("models").replaceChildren(...models.map((one) => card(one, now)));
  const told = records.filter((record) => record.changed).slice(-DECISIONS).reverse();
  byId("journal").hidden = !told.length;
  byId("decisions").replaceChildren(...told.map((record) =>
    make("tr", {},
      make("td", { textContent: new Date(1000 * record.at).toLocaleTimeString() }),
      make("td", { textContent: record.subject }),
      make("td", { textContent: decided(record.decided) }),
      make("td", { textContent: record.reason }))));
}

const mib = (bytes) => Math.floor(bytes / 2 ** 20);
const percent = (part) => `${Math.round(100 * part)} %`;

function showGpus(gpus) {
  byId("graphics").hidden = !gpus.length;
  byId("gpus").replaceChildren(...gpus.map((one) => {
    const state = make("td", { className: `state-${one.state}`, textContent: one.fault ? `${one.state}: ${one.fault}` : one.state });
    const memory = `${mib(one.used_bytes)} of ${mib(one.total_bytes)} MiB used, ${mib(one.reserved_bytes)} reserved of a budget of ${mib(one.budget_bytes)}`;
    const row = make("tr", {},
      make("td", { textContent: `${one.name} ${one.uuid}` }),
      make("td", { textContent: one.device }),
      state,
      make("td", { textContent: memory }),
      make("td", { textContent: one.utilisation === null ? "–" : percent(one.utilisation) }),
      make("td", { textContent: residents(one) }));
    row.dataset.gpu = one.uuid;
    return row;
  }));
}

function residents(gpu) {
  const total = Object.values(gpu.executions).reduce((sum, count) => sum + count, 0);
  return Object.entries(gpu.models).map(([name, state]) =>
    state === "ready" && total ? `${name} ${percent(gpu.executions[name] / total)}` : `${name} ${state}`).join(", ") || "none";
}

function answeredBy(counts) {
  const found = Object.entries(counts).filter(([, count]) => count).sort((a, b) => b[1] - a[1]);
  const total = found.reduce((sum, [, count]) => sum + count, 0);
  return found.map(([device, count]) => `${device} ${percent(count / total)}`).join(", ");
}

function decided(decision) {
  if (decision.rollout) return decision.rollout;
  if (decision.device) return decision.device;
  const cores = Number(decision.guaranteed_cores);
  return Number.isFinite(cores) ? `${cores.toFixed(2)} cores, ${decision.verdict}` : "";
}

function card(one, now) {
  const own = records.filter((record) => record.subject === one.name && "guaranteed_cores" in record.decided);
  const objective = one.objective.milliseconds;
  const verdict = one.state === "ready" ? one.verdict : one.state;
  const head = make("div", { className: "head" },
    make("h2", { textContent: one.name }),
    make("span", { className: `verdict ${verdict}`, textContent: verdict.replaceAll("_", " ") }),
    make("span", { textContent: `version ${one.version}` }),
    make("span", { textContent: `${one.requests} requests, ${one.errors} lost in ${one.window_s} s` }));
  if (one.candidate) {
    const state = one.canary ? `canary, ${one.canary.state}` : one.candidate.state;
    head.append(make("span", { textContent: `trying version ${one.candidate.version}: ${state}` }));
  }
  if (one.answered && Object.keys(one.answered).length) {
    head.append(make("span", { textContent: `answered by ${answeredBy(one.answered)}` }));
  }
  if (one.gpu && one.gpu.state === "none" && one.gpu.note) head.append(make("span", { textContent: `no place on a GPU: ${one.gpu.note}` }));
  if (one.reason) head.append(make("span", { textContent: one.reason }));
  const line = (pick) => own.map((record) => [record.at, pick(record)]);
  const cores = one.cores || {};
  const charts = make("div", { className: "charts" },
    chart("latency", now, [
      ["measured", `p${one.objective.percentile} ${told(one.percentile_ms)} ms`, line((r) => r.seen.percentile_ms)],
      ["limit", `objective ${objective} ms`, flat(now, objective)],
    ]),
    chart("cores", now, [
      ["measured", `guaranteed ${told(cores.guaranteed)}`, line((r) => r.decided.guaranteed_cores)],
      ...(cores.ceiling ? [["limit", `at most ${told(cores.ceiling)}`, line((r) => r.decided.ceiling_cores)]] : []),
      ["used", `used ${told(cores.used)}`, line((r) => r.seen.used_cores)],
    ]),
    chart("requests", now, [
      ["queue", `waiting ${one.queue ? one.queue.requests : 0}`, line((r) => r.seen.waiting)],
      ["measured", "arriving each second", line((r) => r.seen.arrivals_per_s)],
    ]),
    batches(one.batches || {}));
  const section = make("section", { className: "model" }, head, charts);
  section.dataset.model = one.name;
  return section;
}

const figures = new Intl.NumberFormat("en", { maximumSignificantDigits: 3, useGrouping: false });
const told = (number) => (number === null || number === undefined ? "–" : figures.format(number));
const flat = (now, value) => [[now - SHOWN_S, value], [now, value]];

function chart(title, now, series) {
  const values = series.flatMap(([, , points]) => points.map((point) => point[1])).filter(Number.isFinite);
  const top = 1.1 * Math.max(...values, 1e-9);
  const svg = draw("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img" });
  const said = series.map(([, label]) => label).join(", ");
  svg.setAttribute("aria-label", `${title}: ${said}`);
  for (const y of [0, 50, 100]) svg.append(draw("line", { class: "axis", x1: 0, x2: 100, y1: y, y2: y }));
  for (const [name, , points] of series) {
    const path = trace(points, now, top);
    if (path) svg.append(draw("path", { class: `series ${name}`, d: path }));
  }
  const caption = make("figcaption", {}, make("b", { textContent: title }), `, up to ${told(top)}: `);
  series.forEach(([name, label], index) => {
    caption.append(make("span", { className: `key-${name}`, textContent: label }), index < series.length - 1 ? ", " : "");
  });
  return make("figure", {}, caption, svg);
}

function trace(points, now, top) {
  let path = "", before = -Infinity;
  for (const [at, value] of points) {
    if (!Number.isFinite(value)) continue;
    const x = (100 * (at - now + SHOWN_S)) / SHOWN_S, y = 100 - (100 * value) / top;
    const broken = at - before > GAP_S && points.length > 2;
    path += `${path && !broken ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`;
    before = at;
  }
  return path;
}

function batches(counts) {
  const sizes = Object.entries(counts);
  const most = Math.max(...sizes.map(([, count]) => count), 1);
  const bars = make("div", { className: "bars" });
  bars.setAttribute("role", "img");
  bars.setAttribute("aria-label", `batches: ${sizes.map(([size, n]) => `${n} of ${size}`).join(", ") || "none yet"}`);
  for (const [size, count] of sizes) {
    const svg = draw("svg", { viewBox: "0 0 10 100", preserveAspectRatio: "none" });
    const height = Math.max(1, (100 * count) / most);
    svg.append(draw("rect", { x: 0, y: 100 - height, width: 10, height }));
    const bar = make("div", { className: "bar", title: `${count} executions of ${size}` }, svg, size);
    bars.append(bar);
  }
  return make("figure", {}, make("figcaption", {}, make("b", { textContent: "batches" }), " by their size"), bars);
}

look();
