// Server-sent events over fetch: EventSource cannot send a key.
import { ApiFailure } from '../lib/api';

export interface ServerEvent {
  event: string;
  data: string;
}

const RETRY_MS = 2000;

/** The events of a response's body; lines may be cut anywhere, also inside a character. */
export async function* eventsOf(body: ReadableStream<Uint8Array>): AsyncGenerator<ServerEvent> {
  const reader = body.pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>).getReader();
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value.replace(/\r/g, '');
      let end: number;
      while ((end = rest.indexOf('\n\n')) >= 0) {
        const found = eventOf(rest.slice(0, end));
        rest = rest.slice(end + 2);
        if (found) yield found;
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

/** One event's lines; null for a comment that keeps the connection open. */
export function eventOf(block: string): ServerEvent | null {
  let event = 'message';
  const data: string[] = [];
  for (const line of block.split('\n')) {
    if (line.startsWith('event:')) event = line.slice(6).trim();
    else if (line.startsWith('data:')) data.push(line.slice(line[5] === ' ' ? 6 : 5));
  }
  return data.length > 0 ? { event, data: data.join('\n') } : null;
}

/** Events of a route that is opened again, after two seconds, whenever it ends or breaks; a refusal (4xx) ends it. */
export async function* events(open: () => Promise<Response>, signal: AbortSignal): AsyncGenerator<ServerEvent> {
  while (!signal.aborted) {
    try {
      const { body } = await open();
      if (body) yield* eventsOf(body);
    } catch (error) {
      if (error instanceof ApiFailure && error.status >= 400 && error.status < 500) return;
    }
    if (!signal.aborted) await pause(RETRY_MS, signal);
  }
}

function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener('abort', () => (clearTimeout(timer), resolve()), { once: true });
  });
}
