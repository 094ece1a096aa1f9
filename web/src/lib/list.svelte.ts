// The list of conversations, as the server has it; the search is the server's too (titles and contents).
import { store } from './conversations';
import type { ConversationSummary } from './types';

class List {
  all: ConversationSummary[] = $state.raw([]);
  query = $state('');
  state: 'loading' | 'ready' = $state('loading');
  error = $state('');
  #abort: AbortController | null = null;
  readonly folders: string[] = $derived(
    [...new Set(this.all.flatMap(({ folder }) => (folder ? [folder] : [])))].sort((a, b) => a.localeCompare(b)),
  );

  /** Ask again. A later call wins over an earlier one. */
  async refresh(): Promise<void> {
    this.#abort?.abort();
    const abort = (this.#abort = new AbortController());
    try {
      this.all = await store.list(this.query.trim(), abort.signal);
      this.error = '';
    } catch (error) {
      if (abort.signal.aborted) return;
      this.error = error instanceof Error ? error.message : String(error);
    }
    this.state = 'ready';
  }

  async search(query: string): Promise<void> {
    this.query = query;
    await this.refresh();
  }

  async change(id: string, changed: Partial<Pick<ConversationSummary, 'title' | 'folder' | 'pinned'>>): Promise<void> {
    this.all = this.all.map((each) => (each.id === id ? { ...each, ...changed } : each));
    await this.#asking(() => store.change(id, changed));
  }

  async remove(id: string): Promise<void> {
    this.all = this.all.filter((each) => each.id !== id);
    await this.#asking(() => store.remove(id));
  }

  async import(exported: unknown): Promise<boolean> {
    return this.#asking(() => store.import(exported));
  }

  async #asking(work: () => Promise<unknown>): Promise<boolean> {
    let failed = '';
    try {
      await work();
    } catch (error) {
      failed = error instanceof Error ? error.message : String(error);
    }
    await this.refresh();
    this.error = failed;
    return failed === '';
  }
}

export const list = new List();

export type Group = { kind: 'pinned' | 'folder' | 'today' | 'yesterday' | 'week' | 'older'; name: string; items: ConversationSummary[] };

/** The list in groups: what is pinned, folders by name, and the rest by day. Times are seconds since 1970. */
export function grouped(all: readonly ConversationSummary[], nowMs: number): Group[] {
  const midnight = new Date(nowMs).setHours(0, 0, 0, 0) / 1000;
  const day = 86_400;
  const groups = new Map<string, Group>();
  const put = (kind: Group['kind'], name: string, item: ConversationSummary): void => {
    const key = `${kind}/${name}`;
    const group = groups.get(key) ?? { kind, name, items: [] };
    group.items.push(item);
    groups.set(key, group);
  };
  for (const item of all) {
    if (item.pinned) put('pinned', '', item);
    else if (item.folder) put('folder', item.folder, item);
    else if (item.updated_at >= midnight) put('today', '', item);
    else if (item.updated_at >= midnight - day) put('yesterday', '', item);
    else if (item.updated_at >= midnight - 6 * day) put('week', '', item);
    else put('older', '', item);
  }
  const order = ['pinned', 'folder', 'today', 'yesterday', 'week', 'older'];
  return [...groups.values()].sort(
    (a, b) => order.indexOf(a.kind) - order.indexOf(b.kind) || a.name.localeCompare(b.name),
  );
}
