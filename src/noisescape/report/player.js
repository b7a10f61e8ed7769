"use strict";
// native elements: plotly's own buttons and sliders cannot be reached from a keyboard
for (const player of document.querySelectorAll(".player")) {
  const plot = player.querySelector(".js-plotly-plot");
  const names = JSON.parse(player.dataset.frames);
  const [button, slider, output] = ["button", "input", "output"].map((name) => player.querySelector(`.playing ${name}`));
  const still = {frame: {duration: 0, redraw: false}, mode: "immediate", transition: {duration: 0}};
  const moving = {frame: {duration: 60, redraw: false}, mode: "immediate", transition: {duration: 0}};
  let playing = false;
  const show = (place) => {
    slider.value = place;
    output.textContent = names[place];
    slider.setAttribute("aria-valuetext", `step ${names[place]}`);
  };
  const say = (state) => {
    playing = state;
    button.textContent = playing ? "❚❚ pause" : "▶ play";
  };
  plot.on("plotly_animatingframe", ({name}) => show(names.indexOf(name)));
  plot.on("plotly_animated", () => say(false));
  slider.addEventListener("input", () => {
    say(false);
    show(slider.value);
    Plotly.animate(plot, [names[slider.value]], still);
  });
  button.addEventListener("click", () => {
    if (playing) {
      Plotly.animate(plot, [null], still);
      say(false);
      return;
    }
    const start = Number(slider.value) === names.length - 1 ? 0 : Number(slider.value);
    say(true);
    Plotly.animate(plot, names.slice(start), moving).catch(() => {}); // paused: a promise that is not kept
  });
}
