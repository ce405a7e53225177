// What the hub answers: JSON that is not sent again while it is the same, and never too many requests at once.

const PATIENCE_MS = 20_000;

/** The hub answered, and the answer was no. */
export class Refused extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Lets a few requests go at a time, the oldest first: a browser has six connections to the hub, for all it loads. */
export class Gate {
  #free;
  #waiting = [];

  /** @param {number} limit */
  constructor(limit) {
    this.#free = limit;
  }

  /** Runs `task` when it is its turn. */
  async pass(task) {
    if (this.#free > 0) this.#free -= 1;
    else await new Promise((go) => this.#waiting.push(go));
    try {
      return await task();
    } finally {
      if (this.#waiting.length) this.#waiting.shift()();
      else this.#free += 1;
    }
  }
}

const gate = new Gate(4);

/**
 * Ask the hub.
 * @param {string} url
 * @param {{etag?: string|null, signal?: AbortSignal}} [options] `etag` of the answer that the caller has
 * @returns {Promise<{data: any, etag: string|null}|null>} null when the caller's answer still holds
 * @throws {Refused} when the hub refuses; what fetch throws when there was no answer
 */
export function ask(url, { etag = null, signal = null } = {}) {
  return gate.pass(async () => {
    signal?.throwIfAborted();
    const limit = AbortSignal.timeout(PATIENCE_MS);
    const answer = await fetch(url, {
      headers: etag ? { "If-None-Match": etag } : {},
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
      cache: "no-store",
    });
    if (answer.status === 304) return null;
    const json = await answer.json().catch(() => null);
    if (!answer.ok || !json) throw new Refused(answer.status, json?.message ?? `the hub answered ${answer.status}`);
    return { data: json.data, etag: answer.headers.get("ETag") };
  });
}
