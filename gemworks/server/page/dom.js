// Elements by name. Attributes are set one by one and children are nodes or text: there is no way in for markup.

const SVG = "http://www.w3.org/2000/svg";

/** Return an element. A true attribute is set empty, false, null and undefined ones are left out. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Return one of the pictures of index.html (symbols named icon-...), hidden from screen readers. */
export function icon(name) {
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("class", "icon");
  picture.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  picture.append(use);
  return picture;
}

/** Return a button with a picture; `label` is its name for screen readers and its tooltip. */
export function iconButton(name, label, onClick, attributes = {}) {
  const button = el("button", { type: "button", class: "icon-button", "aria-label": label, title: label, ...attributes }, icon(name));
  if (onClick) button.addEventListener("click", onClick);
  return button;
}

/** The element of index.html with that id. */
export const byId = (id) => document.getElementById(id);
