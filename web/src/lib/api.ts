// Asks the server, with the key of the settings. Every failure is an ApiFailure with the server's own words.
import { t } from './i18n.svelte';
import { settings } from './settings.svelte';

export class ApiFailure extends Error {
  override readonly name = 'ApiFailure';

  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

/** Called when the server wants a key, or another one. */
let onUnauthorized = (): void => undefined;

export function whenUnauthorized(then: () => void): void {
  onUnauthorized = then;
}

/** Where the server's routes begin: beside the page, whatever prefix it was started with. */
export function address(path: string): string {
  return new URL(path.replace(/^\//, ''), document.baseURI.replace(/[#?].*$/, '')).href;
}

async function wordsOf(response: Response): Promise<string> {
  const text = await response.text().catch(() => '');
  try {
    const body: unknown = JSON.parse(text);
    if (typeof body === 'object' && body !== null && 'error' in body) {
      const error = (body as { error: unknown }).error;
      if (typeof error === 'string') return error;
      if (typeof error === 'object' && error !== null && 'message' in error) return String(error.message);
    }
  } catch {
    // not JSON: a proxy's page, say
  }
  return text.length > 0 && text.length < 300 ? text : `HTTP ${response.status}`;
}

/** A response whose status is 2xx. ApiFailure otherwise; status 0: the server was not reached. */
export async function request(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  if (settings.key !== '') headers.set('Authorization', `Bearer ${settings.key}`);
  let response: Response;
  try {
    response = await fetch(address(path), { ...init, headers });
  } catch (error) {
    if (error instanceof DOMException && error.name === 'AbortError') throw error;
    throw new ApiFailure(0, t().app.unreachable); // browsers say no more than "Failed to fetch"
  }
  if (response.status === 401) onUnauthorized();
  if (!response.ok) throw new ApiFailure(response.status, await wordsOf(response));
  return response;
}

async function json<T>(path: string, init: RequestInit = {}): Promise<T> {
  const response = await request(path, init);
  return (response.status === 204 ? undefined : await response.json()) as T;
}

function sending(method: string, body: unknown): RequestInit {
  return { method, headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) };
}

/** Typed by what the caller knows of the route; bodies are JSON. */
export const api = {
  get: <T>(path: string, signal?: AbortSignal): Promise<T> => json<T>(path, signal ? { signal } : {}),
  post: <T>(path: string, body: unknown = {}, signal?: AbortSignal): Promise<T> =>
    json<T>(path, { ...sending('POST', body), ...(signal ? { signal } : {}) }),
  put: <T>(path: string, body: unknown): Promise<T> => json<T>(path, sending('PUT', body)),
  patch: <T>(path: string, body: unknown): Promise<T> => json<T>(path, sending('PATCH', body)),
  delete: <T = void>(path: string): Promise<T> => json<T>(path, { method: 'DELETE' }),
};
