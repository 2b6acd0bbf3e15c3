/**
 * The icons: strokes on a 20 by 20 grid, drawn for this page, coloured by the text around them.
 */

const SVG = "http://www.w3.org/2000/svg";

/** Path data; every icon is stroked, never filled. */
const PATHS = {
  plus: "M10 4v12M4 10h12",
  search: "M9 3.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11ZM13 13l3.5 3.5",
  menu: "M3.5 6h13M3.5 10h13M3.5 14h8",
  more: "M4.5 10h.01M10 10h.01M15.5 10h.01",
  pin: "M7 3.5h6M8 3.5v5L5.5 12h9L12 8.5v-5M10 12v4.5",
  folder:
    "M3 6.5c0-1 .5-1.5 1.5-1.5H8l1.5 2h6c1 0 1.5.5 1.5 1.5v5c0 1-.5 1.5-1.5 1.5h-11c-1 0-1.5-.5-1.5-1.5Z",
  file: "M6 2.5h5.5L15 6v10c0 1-.5 1.5-1.5 1.5H6c-1 0-1.5-.5-1.5-1.5V4c0-1 .5-1.5 1.5-1.5ZM11.5 2.5V6H15",
  documents: "M4 3.5h4v13H4ZM8 3.5h3.5v13H8ZM12 4.5l3-.8 2.5 12-3 .8Z",
  settings: "M3.5 6h7M14.5 6h2M3.5 14h2M9.5 14h7M12.5 4v4M7.5 12v4",
  send: "M10 16V4.5M5 9l5-5 5 5",
  stop: "M6 6h8v8H6Z",
  copy: "M7 7h9v9.5H7ZM4 13V3.5h9",
  check: "M4 10.5l4 4 8-9",
  close: "M5 5l10 10M15 5 5 15",
  edit: "M4 16l.8-3.5L13 4.3l2.7 2.7-8.2 8.2ZM11.5 5.8l2.7 2.7",
  again: "M15.5 8.5a6 6 0 1 0 .3 3M16 4.5v4h-4",
  device: "M6 6h8v8H6ZM8 3.5V6M12 3.5V6M8 14v2.5M12 14v2.5M3.5 8H6M3.5 12H6M14 8h2.5M14 12h2.5",
  cloud: "M6 15a3.3 3.3 0 0 1-.4-6.6A4.6 4.6 0 0 1 14.5 8 3.5 3.5 0 0 1 14 15Z",
  tool: "M12.5 3.8a4 4 0 0 0-4.6 5.3L3.8 13.2l3 3 4.1-4.1a4 4 0 0 0 5.3-4.6l-2.5 2.4-2.4-.7-.7-2.4Z",
  left: "M12 5l-5 5 5 5",
  right: "M8 5l5 5-5 5",
  down: "M5 8l5 5 5-5",
  book: "M10 5.5C8.5 4.3 6 4 3.5 4.2v11c2.5-.2 5 .1 6.5 1.3 1.5-1.2 4-1.5 6.5-1.3v-11C14 4 11.5 4.3 10 5.5ZM10 5.5v11",
  person: "M10 3.5a3 3 0 1 0 0 6 3 3 0 0 0 0-6ZM4.5 16.5c.5-3 2.5-4.5 5.5-4.5s5 1.5 5.5 4.5",
  lock: "M5.5 9h9v7.5h-9ZM7.5 9V6.5a2.5 2.5 0 0 1 5 0V9",
  warning: "M10 3.5l7 12.5H3ZM10 8.5v3.5M10 14h.01",
  info: "M10 3a7 7 0 1 0 0 14 7 7 0 0 0 0-14ZM10 9v4.5M10 6.5h.01",
  trash: "M4 5.5h12M8 5.5v-2h4v2M5.5 5.5l.7 11h7.6l.7-11M8.5 8.5v5M11.5 8.5v5",
  upload: "M10 13V4M6 8l4-4 4 4M4 13.5v3h12v-3",
  download: "M10 4v9M6 9l4 4 4-4M4 13.5v3h12v-3",
  key: "M7 8.5a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7ZM9.5 9.5l6-6M13 6l2.5 2.5",
  bolt: "M11 3 5.5 11H10l-1 6 5.5-8H10Z",
};

/** @typedef {keyof typeof PATHS} IconName */

/**
 * An icon that says nothing to a screen reader: its button carries the label.
 * @param {IconName} name
 * @returns {SVGSVGElement}
 */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("focusable", "false");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}
