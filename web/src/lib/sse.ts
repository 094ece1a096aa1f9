// Server-sent events out of a response's bytes: the `data:` of each event, until the server's [DONE].

/** The data of events in a text that may end in the middle of one, and that rest. */
export function splitEvents(buffer: string): { data: string[]; rest: string } {
  const parts = buffer.split(/\r?\n\r?\n/);
  const rest = parts.pop() ?? '';
  const data: string[] = [];
  for (const part of parts) {
    const lines = part.split(/\r?\n/).filter((line) => line.startsWith('data:'));
    if (lines.length > 0) data.push(lines.map((line) => line.slice(5).replace(/^ /, '')).join('\n'));
  }
  return { data, rest };
}

/** The JSON of each event. Ends at [DONE] or with the response. */
export async function* events(response: Response): AsyncGenerator<unknown> {
  if (response.body === null) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = '';
  try {
    for (;;) {
      const { value, done } = await reader.read();
      const { data, rest } = splitEvents(done ? `${buffer}\n\n` : buffer + value);
      buffer = rest;
      for (const text of data) {
        if (text === '[DONE]') return;
        yield JSON.parse(text);
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => undefined); // an aborted response is already closed
  }
}
