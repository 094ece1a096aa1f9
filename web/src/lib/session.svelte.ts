// What the server is: its models, the defaults of its samplers, whether it shows runs; and whether it wants a key.
import { api, ApiFailure, whenUnauthorized } from './api';
import { settings } from './settings.svelte';
import type { Model, Sampling, Session } from './types';

const RETRY_MS = 3000;

class ServerSession {
  models: Model[] = $state.raw([]);
  defaults: Sampling = $state.raw({});
  runs = $state(false);
  /** False where only runs are shown (`etude view`). */
  chats = $state(true);
  kept = $state(true);
  version = $state('');
  error = $state('');
  needsKey = $state(false);
  ready = $state(false);
  #unlisted: Model[] = $state.raw([]);
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor() {
    whenUnauthorized(() => (this.needsKey = true));
  }

  /** Read everything. Failing to is shown by the page; where time may help, it is tried again until it works. */
  async load(): Promise<void> {
    clearTimeout(this.#timer);
    try {
      const found = await api.get<Session>('/api/session');
      this.defaults = found.defaults ?? {};
      this.runs = found.runs;
      this.chats = found.conversations ?? true;
      if (this.chats) await this.refreshModels(true);
      this.kept = found.kept ?? true;
      this.version = found.version;
      this.error = '';
      this.ready = true;
    } catch (error) {
      const status = error instanceof ApiFailure ? error.status : null;
      this.error = status === 401 ? '' : error instanceof Error ? error.message : String(error);
      if (status === 0 || (status !== null && status >= 500)) this.#timer = setTimeout(() => void this.load(), RETRY_MS);
    }
  }

  /** What is known of a model changes when it is loaded. used: one that may not be listed (a checkpoint of a run). */
  async refreshModels(loudly = false, used?: string): Promise<void> {
    try {
      this.models = (await api.get<{ data: Model[] }>('/v1/models')).data;
      if (used === undefined || this.#find(used) !== undefined) return;
      const found = await api.get<Model>(`/v1/models/${used.split('/').map(encodeURIComponent).join('/')}`);
      this.#unlisted = [...this.#unlisted, { ...found, id: used }];
    } catch (error) {
      if (loudly) throw error;
    }
  }

  async useKey(key: string): Promise<void> {
    settings.set({ key });
    this.needsKey = this.ready = false;
    await this.load();
  }

  /** False only where the server has said so. */
  isLoaded(model: string | null | undefined): boolean {
    return !this.models.some(({ id, status }) => id === model && status !== undefined && status.value !== 'loaded');
  }

  /** Tokens that fit a model's context, as far as it is known yet. */
  contextOf(model: string | undefined): number | null {
    const found = model === undefined ? undefined : this.#find(model);
    return found?.meta?.n_ctx ?? found?.max_model_len ?? null;
  }

  #find(model: string): Model | undefined {
    return [...this.models, ...this.#unlisted].find(({ id, aliases }) => id === model || aliases?.includes(model));
  }
}

export const session = new ServerSession();
