// Calls on the service. Every address is relative to the page, so that it works behind a prefix.

const SHELF = "perennial.keys";
const PATIENCE = 20_000; // milliseconds

/** What went wrong, in words: a problem document, or no answer at all (status 0). */
export class Problem extends Error {
  constructor(status, title, detail, retryAfter = null) {
    super(detail || title);
    this.status = status;
    this.title = title;
    this.retryAfter = retryAfter;
  }
  /** Whether the same call may succeed later. */
  get passing() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
  get aboutKey() {
    return this.status === 401 || this.status === 403;
  }
}

/** Keys live in this tab only: `any` for what reads, predicts and labels, `admin` for promote and roll back. */
export const keys = {
  get(scope) {
    const kept = JSON.parse(sessionStorage.getItem(SHELF) ?? "{}");
    return (scope === "admin" ? kept.admin : kept.any ?? kept.admin) ?? null;
  },
  set(scope, value) {
    const kept = JSON.parse(sessionStorage.getItem(SHELF) ?? "{}");
    if (value) kept[scope] = value;
    else delete kept[scope];
    sessionStorage.setItem(SHELF, JSON.stringify(kept));
  },
};

/** The address of what the service names `/v1/...`. */
export const relative = (path) => path.replace(/^\//, "");

/** Ask; returns what was answered (its JSON, or with `as: "blob"` its bytes) and its headers. No problem are 200 and 304 only. */
export async function call(path, { as = "json", scope = "any", key = keys.get(scope), headers = {}, patience = PATIENCE, ...rest } = {}) {
  try {
    const response = await fetch(relative(path), {
      ...rest,
      headers: { ...headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) },
      credentials: "same-origin",
      redirect: "error",
      signal: AbortSignal.timeout(patience),
    });
    if (response.status === 304) return { found: null, headers: response.headers };
    if (response.ok) return { found: await response[as](), headers: response.headers };
    const told = await response.json().catch(() => ({}));
    throw new Problem(
      response.status, told.title ?? `status ${response.status}`, told.detail ?? response.statusText,
      Number(response.headers.get("Retry-After")) || null,
    );
  } catch (error) {
    // A server may also go away amid its answer, and what stands before it may answer with a page of its own.
    if (error instanceof Problem) throw error;
    if (error instanceof SyntaxError) throw new Problem(0, "no answer of the service", "what answers is not the service");
    throw new Problem(0, error.name === "TimeoutError" ? "no answer in time" : "no answer", "the server does not answer");
  }
}

export async function ask(path, options) {
  return (await call(path, options)).found;
}

export function send(path, body, options = {}) {
  return ask(path, { method: "POST", body: JSON.stringify(body), ...options, headers: { "Content-Type": "application/json" } });
}

// A browser sends no key with an <img>, so with a key the bytes are fetched, once each.
const fetched = new Map();
const MOST_FETCHED = 200;

function address(path) {
  if (!keys.get("any")) return Promise.resolve(relative(path));
  if (!fetched.has(path)) {
    while (fetched.size >= MOST_FETCHED) {
      const [oldest, url] = fetched.entries().next().value;
      fetched.delete(oldest);
      url.then(URL.revokeObjectURL, () => {});
    }
    const url = call(path, { as: "blob" }).then(({ found }) => URL.createObjectURL(found));
    url.catch(() => fetched.delete(path));
    fetched.set(path, url);
  }
  return fetched.get(path);
}

const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) show(target);
}, { rootMargin: "300px" });

async function show(image) {
  seen.unobserve(image);
  try {
    image.src = await address(image.dataset.picture);
  } catch {
    image.classList.add("missing");
  }
}

/** Show a captured or reference picture in this <img> once it comes into view; where there is none it gets the class `missing`. */
export function load(image) {
  image.addEventListener("error", () => image.classList.add("missing"));
  image.addEventListener("load", () => image.classList.remove("missing"));
  seen.observe(image);
}
/** Try the pictures again that could not be had: the server is back, or there is a key. */
export function loadMissing() {
  for (const image of document.querySelectorAll("img.missing[data-picture]")) {
    image.removeAttribute("src");
    seen.observe(image);
  }
}
/** Begin to fetch a picture that will be shown next. */
export function preload(path) {
  address(path).then((url) => { new Image().src = url; }, () => {});
}
