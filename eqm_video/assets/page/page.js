// Uploads go to this page's own address, and their token into a hidden field; the brush marks frames to keep.
(() => {
  const put = (id, value) => {
    const box = document.querySelector(`#${id} textarea, #${id} input`);
    if (!box) return;
    const proto = box.tagName === "TEXTAREA" ? HTMLTextAreaElement.prototype : HTMLInputElement.prototype;
    Object.getOwnPropertyDescriptor(proto, "value").set.call(box, value);
    box.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const send = async (input, file) => {
    const says = input.parentElement.querySelector("output");
    if (!file) { says.textContent = ""; put(input.dataset.target, ""); return; }
    says.textContent = "sending ...";
    let answer;
    try {
      const sent = await fetch(`uploads?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file });
      answer = await sent.json();
    } catch {
      answer = { error: "the file did not arrive: try again, or take a smaller one" };
    }
    says.textContent = answer.error || answer.says;
    says.className = answer.error ? "eqm-refusal" : "";
    put(input.dataset.target, answer.token || "");
  };
  document.addEventListener("change", (event) => {
    if (event.target.matches(".eqm-drop input")) send(event.target, event.target.files[0]);
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      const drop = event.target.closest && event.target.closest(".eqm-drop");
      if (!drop) return;
      event.preventDefault();
      drop.classList.toggle("eqm-over", kind === "dragover");
      if (kind === "drop") send(drop.querySelector("input"), event.dataTransfer.files[0]);
    });
  }

  let paint = null; // the state that a stroke gives to frames: "true", "false", or null between strokes
  const mark = (button) => {
    if (!button || button.getAttribute("aria-pressed") === paint) return;
    button.setAttribute("aria-pressed", paint);
    const brush = button.closest(".eqm-brush");
    const known = [...brush.querySelectorAll('button[aria-pressed="true"]')].map((each) => each.dataset.frame);
    put("eqm-known", known.join(","));
  };
  const under = (event) => {
    const below = document.elementFromPoint(event.clientX, event.clientY);
    return below && below.closest(".eqm-brush button");
  };
  document.addEventListener("pointerdown", (event) => {
    const button = event.target.closest && event.target.closest(".eqm-brush button");
    if (!button) return;
    paint = button.getAttribute("aria-pressed") === "true" ? "false" : "true";
    mark(button);
  });
  document.addEventListener("pointermove", (event) => { if (paint !== null) mark(under(event)); });
  document.addEventListener("pointerup", () => { paint = null; });
  document.addEventListener("pointercancel", () => { paint = null; });
  document.addEventListener("keydown", (event) => { // the keyboard's way to mark a frame
    const button = event.target.closest && event.target.closest(".eqm-brush button");
    if (!button || (event.key !== "Enter" && event.key !== " ")) return;
    event.preventDefault();
    paint = button.getAttribute("aria-pressed") === "true" ? "false" : "true";
    mark(button);
    paint = null;
  });
})();
