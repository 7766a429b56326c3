// Helpers of all sections. Text from a run reaches the page through textContent only.
const later = []; // work that can wait until the page is painted
const at = (id) => document.getElementById(id);

const make = (tag, className, ...children) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
};

const kindClass = (name) => `kind-${name.replaceAll(" ", "-")}`;

// The JSON of an element whose text is gzip in base64.
const inflate = async (id) => {
  const bytes = Uint8Array.from(atob(at(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
};
