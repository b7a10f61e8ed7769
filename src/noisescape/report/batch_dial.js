"use strict";
for (const dial of document.querySelectorAll("form.dial")) {
  const given = JSON.parse(dial.dataset.given);
  const input = dial.querySelector("input");
  const number = (end) => (end === null ? NaN : Number(end));
  const scale = given.scale.map(number), sgd = given.sgd.map(number);
  const short = (value, missing) => {
    if (Number.isNaN(value)) return missing ?? "–";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    const size = Math.abs(Number(value.toPrecision(3)));
    const plain = size === 0 || (size >= 1e-4 && size < 1e7);
    const text = plain ? String(Number(value.toPrecision(3))) : value.toExponential(2).replace(/\.?0+e/, "e");
    return text.replace("e+", "e").replaceAll("-", "−");
  };
  const written = ([value, low, high]) => {
    const text = short(value, "undetermined");
    return Number.isNaN(low) ? text : `${text} [${short(low)} to ${short(high)}]`;
  };
  // value and ends through a monotone function, the ends in order
  const mapped = ([value, low, high], rule) => [rule(value), ...[rule(low), rule(high)].sort((a, b) => a - b)];
  const show = (name, figure) => {
    const output = dial.querySelector(`output[data-name="${name}"]`);
    if (!output) return;
    output.textContent = written(figure);
    output.dataset.value = figure[0];
  };
  const turn = () => {
    const size = given.size, other = Math.max(1, Math.floor(size * 2 ** (input.value / given.stops) + 0.5));
    const growth = other / size;
    const samples = (noise) => (noise === Infinity ? 1 : (other + noise) / (size + noise));
    const unknown = [NaN, NaN];
    const factors = {
      sgd: mapped(sgd, (noise) => growth / samples(noise)),
      adam: [Math.sqrt(growth), ...unknown],
      surge: mapped(scale, (noise) => Math.sqrt(growth) / samples(noise)),
    };
    dial.querySelector('output[data-name="size"]').textContent = other;
    input.setAttribute("aria-valuetext", `batch size ${other}`);
    show("steps", mapped(scale, (noise) => samples(noise) / growth));
    show("samples", mapped(scale, samples));
    show("variance", [given.trace / other, ...unknown]);
    show("relative", mapped(scale, (noise) => noise / other));
    for (const [name, factor] of Object.entries(factors)) {
      show(name, factor);
      show(`${name}-lr`, [given.lr * factor[0], ...unknown]);
    }
  };
  dial.querySelector(".scriptless").remove();
  input.addEventListener("input", turn);
  dial.addEventListener("submit", (event) => event.preventDefault());
  turn();
}
