// Confirmation dialogs. A dialog stays open until it is answered, and shows why an answer was refused.

import { h, icon, setText } from "./dom.js";

const HANDED_OVER_MS = 1500; // a refusal comes at once; longer work continues without its dialog

/** Return the lines with the error and its remedy. */
export function problem(error) {
  return h("div", { class: "problem" }, icon("warn"),
    h("div", {},
      h("p", { class: "problem-what" }, error.message),
      (error.fields ?? []).map((field) => h("p", {}, field.field ? `${field.field}: ${field.message}` : field.message)),
      error.toDo ? h("p", {}, error.toDo) : null,
      error.requestId ? h("p", { class: "code problem-id" }, `request ${error.requestId}`) : null));
}

let counter = 0;

/**
 * Submit after a confirmation: returns the result of `submit(values)`, or undefined if it was cancelled.
 *
 * `fields`: [{name, label, hint, type, value, required, maxlength, min, max, step, matches}]; with `matches` the field has to be typed
 * exactly so before the answer can be yes. `patient`: long work; the dialog closes once it is under way, and `submit`'s
 * promise is given to `patient`.
 */
export function confirmed({ title, lines = [], fields = [], confirm, danger = false, submit, patient }) {
  counter += 1;
  const id = `dialog-${counter}`;
  const yes = h("button", { type: "submit", class: danger ? "button danger" : "button primary" }, confirm);
  const no = h("button", { type: "button", class: "button" }, "Cancel");
  const trouble = h("div", { role: "alert" });
  const inputs = fields.map((field, at) => {
    const input = h("input", {
      id: `${id}-${at}`, name: field.name, type: field.type ?? "text", required: field.required, maxlength: field.maxlength,
      autocomplete: "off", autocapitalize: "off", spellcheck: "false", step: field.step, min: field.min, max: field.max, "aria-describedby": field.hint ? `${id}-${at}-hint` : null,
    });
    input.value = field.value ?? "";
    return { ...field, input };
  });
  const form = h("form", { method: "dialog", novalidate: true },
    h("h2", { id: `${id}-title` }, title),
    lines.map((line) => (typeof line === "string" ? h("p", {}, line) : line)),
    inputs.map(({ input, label, hint }) => h("div", { class: "field" },
      h("label", { for: input.id }, label), input,
      hint ? h("p", { class: "hint", id: `${input.id}-hint` }, hint) : null)),
    trouble,
    h("div", { class: "dialog-buttons" }, no, yes));
  const dialog = h("dialog", { "aria-labelledby": `${id}-title`, class: danger ? "dialog dialog-danger" : "dialog" }, form);
  document.body.append(dialog);

  const ready = () => inputs.every(({ input, required, matches }) =>
    // A date typed in part has no value: that is not the same as none.
    !input.validity.badInput && (matches === undefined || input.value === matches) && (!required || input.value !== ""));
  const refresh = () => { yes.disabled = !ready(); };
  form.addEventListener("input", refresh);
  refresh();

  return new Promise((resolve) => {
    let result;
    let busy = false;
    const setBusy = (value) => {
      busy = value;
      form.classList.toggle("is-busy", value);
      setText(yes, value ? "Working…" : confirm);
      yes.disabled = value || !ready();
    };
    no.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(result);
    });
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (busy || !ready()) return;
      setBusy(true);
      trouble.replaceChildren();
      try {
        const values = Object.fromEntries(inputs.map(({ name, input }) => [name, input.value]));
        const work = submit(values);
        if (patient) {
          const later = new Promise((done) => { setTimeout(done, HANDED_OVER_MS, "later"); });
          if ((await Promise.race([work.then(() => "done"), later])) === "later" && dialog.open) {
            patient(work);
            dialog.close();
            return;
          }
        }
        result = await work;
        dialog.close();
      } catch (error) {
        trouble.replaceChildren(problem(error));
        setBusy(false);
      }
    });
    dialog.showModal();
    (inputs[0]?.input ?? no).focus();
  });
}
