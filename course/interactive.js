// One picture of course/interactive.py. Python has computed what every position of the sliders shows; this only
// swaps it in. Without JavaScript the still picture stays, and no dead slider is to be seen.
(data => {
  const index = (follows, at) => follows.reduce((i, k) => i * data.sliders[k].labels.length + at[k], 0);
  for (const box of document.querySelectorAll("." + data.id + ":not([data-live])")) {
    box.dataset.live = "yes";
    const still = box.querySelector("img"), holder = document.createElement("div");
    holder.innerHTML = decodeURIComponent(still.src.split(",").slice(1).join(","));
    const svg = holder.querySelector("svg");
    still.replaceWith(svg);
    const at = data.sliders.map(s => s.start), inputs = [], outputs = [];

    const draw = () => {
      data.sliders.forEach((s, k) => {
        inputs[k].value = at[k];
        inputs[k].setAttribute("aria-valuetext", outputs[k].value = s.labels[at[k]]);
      });
      data.parts.forEach((part, n) => {
        const node = svg.querySelector(`[data-part="${n}"]`), frame = part.frames[index(part.follows, at)];
        if (typeof frame === "string") return node.setAttribute("d", frame);
        node.setAttribute("x", frame[0]);
        node.setAttribute("y", frame[1]);
        node.textContent = frame[2];
      });
    };

    const controls = document.createElement("div");
    controls.style.cssText = "display:grid;grid-template-columns:auto 1fr auto;gap:.2em .8em;align-items:center";
    data.sliders.forEach((s, k) => {
      const label = document.createElement("label"), input = document.createElement("input");
      input.type = "range";
      input.min = 0;
      input.max = s.labels.length - 1;
      label.textContent = s.label;
      label.htmlFor = input.id = `${data.id}-${Math.random().toString(36).slice(2)}`;
      const output = document.createElement("output");
      output.style.cssText = "min-width:4em;display:inline-block";
      const right = document.createElement("span");
      right.append(output);
      input.addEventListener("input", () => { at[k] = +input.value; draw(); });
      controls.append(label, input, right);
      inputs.push(input);
      outputs.push(output);
      if (!s.play) return;
      const button = document.createElement("button");
      let timer = 0;
      const stop = () => { clearInterval(timer); timer = 0; button.textContent = "play"; };
      const step = () => { at[k] === s.labels.length - 1 ? stop() : (at[k] += 1, draw()); };
      button.addEventListener("click", () => {
        if (timer) return stop();
        if (at[k] === s.labels.length - 1) { at[k] = 0; draw(); }
        button.textContent = "pause";
        timer = setInterval(step, s.play);
      });
      stop();
      right.append(button);
    });
    box.append(controls);
    // without this JupyterLab takes the arrow keys
    for (const kind of ["keydown", "focusin"]) controls.addEventListener(kind, event => event.stopPropagation());

    // a handle is dragged to the nearest of its recorded places
    for (const { follows, places, panel } of data.handles) {
      let held = false;
      const drag = event => {
        const p = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
        if (event.type === "pointerdown") {
          if (p.x < panel[0] || p.x > panel[2] || p.y < panel[1] || p.y > panel[3]) return;
          held = true;
          svg.setPointerCapture(event.pointerId);
        } else if (!held) return;
        event.preventDefault();
        let best = 0, least = Infinity;
        places.forEach(([x, y], i) => { const d = (x - p.x) ** 2 + (y - p.y) ** 2; if (d < least) [best, least] = [i, d]; });
        for (const k of [...follows].reverse()) {
          at[k] = best % data.sliders[k].labels.length;
          best = Math.floor(best / data.sliders[k].labels.length);
        }
        draw();
      };
      svg.addEventListener("pointerdown", drag);
      svg.addEventListener("pointermove", drag);
      for (const kind of ["pointerup", "pointercancel"]) svg.addEventListener(kind, () => { held = false; });
      svg.style.touchAction = "pan-y";
    }
    draw();
  }
})
