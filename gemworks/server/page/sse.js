// Server-sent events from a fetch body, as they arrive.

/** Yield the data of each event of `stream` (a ReadableStream or other async iterable of bytes). */
export async function* events(stream) {
  const decoder = new TextDecoder();
  let buffer = "";
  for await (const bytes of chunks(stream)) {
    buffer += decoder.decode(bytes, { stream: true });
    // A carriage return at the end may be half of a line end: it waits.
    const parts = buffer.split(/\r\n\r\n|\n\n|\r\r(?!$)/);
    buffer = parts.pop();
    for (const part of parts) {
      const data = dataOf(part);
      if (data !== null) yield data;
    }
  }
  const data = dataOf(buffer + decoder.decode());
  if (data !== null) yield data;
}

/** Safari has no async iteration over streams. */
async function* chunks(stream) {
  if (!stream.getReader) return yield* stream;
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {}); // already closed, or aborted: nothing is left to free
  }
}

function dataOf(event) {
  const lines = event.split(/\r\n|\n|\r/).filter((line) => line.startsWith("data:"));
  return lines.length ? lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n") : null;
}
