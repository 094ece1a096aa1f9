// An open conversation: its tree, the path that is read, and the answer that is being written. All of it is kept by
// the server as it comes; a writing goes on while another conversation is looked at.
import { ApiFailure } from './api';
import { leafBelow, pathTo, siblings, store, subtree, textForModel, titleOf } from './conversations';
import { list } from './list.svelte';
import { href, router } from './router.svelte';
import { session } from './session.svelte';
import { settings } from './settings.svelte';
import type { Turn } from './stream';
import { textBefore } from './tokens';
import type { Attachment, ConversationSettings, Message, MessageFields, Role, Timings, Token } from './types';
import { Writing } from './writing.svelte';

const SAVE_MS = 1000;
export const ALTERNATIVES = 5;

/** A message on the page. */
export class Entry {
  readonly id: string;
  readonly parent: string | null;
  readonly role: Role;
  readonly createdAt: number;
  content = $state('');
  reasoning = $state('');
  model: string | null = $state(null);
  timings: Timings | null = $state.raw(null);
  tokens: Token[] = $state.raw([]);
  attachments: Attachment[] = $state.raw([]);
  error = $state('');

  constructor(message: Message) {
    this.id = message.id;
    this.parent = message.parent;
    this.role = message.role;
    this.createdAt = message.created_at;
    this.content = message.content;
    this.reasoning = message.reasoning ?? '';
    this.model = message.model ?? null;
    this.timings = message.timings ?? null;
    this.tokens = message.tokens ?? [];
    this.attachments = message.attachments ?? [];
  }

  /** As the server keeps them; null takes away what was there. */
  get fields(): MessageFields {
    const { content, model, timings } = this;
    const some = <T>(list: T[]): T[] | null => (list.length === 0 ? null : list);
    return {
      content,
      model,
      timings,
      reasoning: this.reasoning === '' ? null : this.reasoning,
      tokens: some(this.tokens),
      attachments: some(this.attachments),
    };
  }
}

export class Chat {
  id: string | null = $state(null);
  title = $state('');
  folder: string | null = $state(null);
  settings: ConversationSettings = $state.raw({});
  entries: Entry[] = $state.raw([]);
  current: string | null = $state(null);
  state: 'ready' | 'loading' | 'missing' = $state('ready');
  error = $state('');
  /** While something the user did is under way. */
  busy = $state(false);
  writing: { entry: Entry; work: Writing } | null = $state.raw(null);
  draft = $state('');
  draftFiles: Attachment[] = $state.raw([]);
  readonly path: Entry[] = $derived(pathTo(this.entries, this.current));

  get last(): Entry | null {
    return this.path.at(-1) ?? null;
  }

  get model(): string | undefined {
    return this.settings.model ?? session.models[0]?.id;
  }

  /** Tokens that the path took when it was last answered. */
  get usedTokens(): number {
    const timings = this.path.findLast((entry) => entry.timings?.predicted_n !== undefined)?.timings;
    if (!timings) return 0;
    return (timings.cache_n ?? 0) + (timings.prompt_n ?? 0) + (timings.predicted_n ?? 0);
  }

  async load(id: string): Promise<void> {
    this.id = id;
    this.state = 'loading';
    try {
      const read = await store.read(id);
      this.title = read.title;
      this.folder = read.folder;
      this.settings = read.settings ?? {};
      this.entries = read.messages.map((message) => new Entry(message));
      const newest = this.entries.at(-1)?.id ?? null;
      this.current = read.current ?? (newest === null ? null : leafBelow(this.entries, newest));
      this.state = 'ready';
    } catch (error) {
      this.state = error instanceof ApiFailure && error.status === 404 ? 'missing' : 'ready';
      this.#fail(error);
    }
  }

  /** What another browser has done to it meanwhile; nothing while something is under way here. */
  async refresh(): Promise<void> {
    const { id } = this;
    if (id === null || this.busy || this.writing !== null || this.state === 'loading') return;
    try {
      const read = await store.read(id);
      if (this.busy || this.writing !== null) return;
      this.title = read.title;
      this.folder = read.folder;
      this.settings = read.settings ?? {};
      this.#take(read.messages, read.current);
      this.state = 'ready';
    } catch (error) {
      if (error instanceof ApiFailure && error.status === 404) this.state = 'missing';
      // else the server is away: what is on the page may still be read
    }
  }

  /** Messages as they are now. The place that is read stays, unless there is something new to read. */
  #take(messages: readonly Message[], current: string | null): void {
    const known = new Map(this.entries.map((entry) => [entry.id, entry]));
    const isNew = messages.some(({ id }) => !known.has(id));
    this.entries = messages.map((message) => {
      const fresh = new Entry(message);
      const old = known.get(message.id);
      return old !== undefined && JSON.stringify(old.fields) === JSON.stringify(fresh.fields) ? old : fresh;
    });
    if (isNew || !this.entries.some(({ id }) => id === this.current)) this.current = current;
  }

  // ── what the user does ──

  /** A new message of the user at the end, and an answer to it. Returns whether the message is kept. */
  async send(text: string, attachments: Attachment[]): Promise<boolean> {
    return this.#guarded(async () => {
      await this.#ensureStored(text || (attachments[0]?.name ?? ''));
      await this.#say(this.last?.id ?? null, text, attachments);
    });
  }

  /** The user's message in another wording, beside the old one, and an answer to it. */
  async edit(entry: Entry, text: string): Promise<boolean> {
    return this.#guarded(() => this.#say(entry.parent, text, entry.attachments));
  }

  /** An answer in the user's words. Its tokens and times were the model's and go. */
  async rewrite(entry: Entry, text: string): Promise<boolean> {
    return this.#guarded(async () => {
      const added = await this.#add(entry.parent, 'assistant', { content: text, ...modelOf(entry.model) });
      this.current = added.id;
    });
  }

  /** Another answer to the same message. model: by this one from now on. */
  async regenerate(entry: Entry): Promise<boolean> {
    return this.#guarded(async () => {
      const parent = entry.role === 'user' ? entry.id : entry.parent;
      await this.#answer(parent);
    });
  }

  /** Go on where an answer ended. */
  async continue(entry: Entry): Promise<boolean> {
    return this.#guarded(() => this.#write(entry));
  }

  /** A new answer that begins like this one, has `alternative` in place of its token `at`, and goes on by itself. */
  async branchAt(entry: Entry, at: number, alternative: string): Promise<boolean> {
    return this.#guarded(async () => {
      const begun = textBefore(entry.tokens, at, entry.content);
      const [, , top] = entry.tokens[at] ?? ['', 0, []];
      if (begun === null) throw new Error('the text cannot be cut in the middle of a character');
      const logprob = top.find(([text]) => text === alternative)?.[1] ?? 0;
      const tokens: Token[] = [...entry.tokens.slice(0, at), [alternative, logprob, top]];
      const content = begun + alternative;
      const added = await this.#add(entry.parent, 'assistant', { content, tokens, ...modelOf(this.model ?? null) });
      this.current = added.id;
      await this.#write(added);
    });
  }

  stop(): void {
    this.writing?.work.stop();
  }

  /** Show another of the siblings; reading goes on with its newest answer. */
  async turn(entry: Entry, step: -1 | 1): Promise<void> {
    const all = siblings(this.entries, entry);
    const next = all[all.findIndex((other) => other.id === entry.id) + step];
    if (next !== undefined) await this.#guarded(() => this.#select(leafBelow(this.entries, next.id)));
  }

  async remove(entry: Entry): Promise<void> {
    await this.#guarded(async () => {
      const others = siblings(this.entries, entry).filter((other) => other.id !== entry.id);
      const gone = subtree(this.entries, entry.id);
      const rest = this.entries.filter((other) => !gone.has(other.id));
      const beside = others.at(-1);
      const leaf = beside === undefined ? entry.parent : leafBelow(rest, beside.id);
      if (this.id !== null) await store.removeMessage(this.id, entry.id);
      this.entries = rest;
      await this.#select(leaf);
    });
  }

  async configure(changed: ConversationSettings): Promise<void> {
    this.settings = changed;
    const { id } = this;
    if (id !== null) await this.#guarded(() => store.change(id, { settings: changed }));
  }

  async rename(title: string): Promise<void> {
    this.title = title;
    if (this.id !== null) await list.change(this.id, { title });
  }

  // ── how it is done ──

  async #guarded(work: () => Promise<unknown>): Promise<boolean> {
    this.error = '';
    this.busy = true;
    try {
      await work();
      return true;
    } catch (error) {
      this.#fail(error);
      return false;
    } finally {
      this.busy = false;
    }
  }

  #fail(error: unknown): void {
    this.error = error instanceof Error ? error.message : String(error);
  }

  async #ensureStored(text: string): Promise<void> {
    if (this.id !== null) return;
    const model = this.model;
    if (model !== undefined) this.settings = { ...this.settings, model };
    this.title = titleOf(text);
    const made = await store.create({
      title: this.title,
      settings: this.settings,
      ...(this.folder === null ? {} : { folder: this.folder }),
    });
    this.id = made.id;
    chats.keep(made.id, this);
    const { route } = router;
    if (route.page === 'chat' && route.id === null) router.go(href.chat(made.id), true);
    void list.refresh();
  }

  async #add(parent: string | null, role: Role, fields: Partial<MessageFields>): Promise<Entry> {
    if (this.id === null) throw new Error('the conversation is not stored yet');
    const message = await store.addMessage(this.id, { parent, role, content: '', ...fields });
    const entry = new Entry({ ...fields, ...message, content: fields.content ?? '', parent, role });
    this.entries = [...this.entries, entry];
    return entry;
  }

  async #select(leaf: string | null): Promise<void> {
    this.current = leaf;
    if (this.id !== null) await store.change(this.id, { current: leaf });
  }

  async #say(parent: string | null, content: string, attachments: Attachment[]): Promise<void> {
    const said = await this.#add(parent, 'user', attachments.length > 0 ? { content, attachments } : { content });
    this.current = said.id;
    await this.#answer(said.id);
  }

  async #answer(parent: string | null): Promise<void> {
    const entry = await this.#add(parent, 'assistant', modelOf(this.model ?? null));
    this.current = entry.id; // on the server, too: it ends reading with what was added last
    await this.#write(entry);
  }

  async #write(entry: Entry): Promise<void> {
    if (this.writing !== null || this.id === null) return;
    const id = this.id;
    let savedMs = performance.now();
    const work = new Writing(entry, () => {
      if (performance.now() - savedMs < SAVE_MS) return;
      savedMs = performance.now();
      // one that is lost is made good by the next, and by the last
      store.changeMessage(id, entry.id, entry.fields).catch(() => undefined);
    });
    entry.error = '';
    if (this.model !== undefined) entry.model = this.model;
    this.writing = { entry, work };
    const messages = this.#turns(entry);
    // tokens are those of the whole answer, or none
    const whole = entry.tokens.length > 0 || (entry.content === '' && entry.reasoning === '');
    const alternatives = settings.tokens && whole ? ALTERNATIVES : null;
    if (alternatives === null) entry.tokens = [];
    const ending = await work.run({ model: this.model, messages, sampling: this.settings.sampling ?? {}, alternatives });
    this.writing = null;
    if (ending === 'failed') entry.error = work.error;
    await store.changeMessage(id, entry.id, entry.fields);
    void list.refresh();
    void session.refreshModels(false, this.model);
  }

  /** What the model reads: the system message, the path before `entry`, and what it has said itself. */
  #turns(entry: Entry): Turn[] {
    const system = this.settings.system?.trim() ?? '';
    const before = pathTo(this.entries, entry.parent).map((each): Turn => ({
      role: each.role,
      content: textForModel(each),
    }));
    const begun = entry.content !== '' || entry.reasoning !== '';
    return [
      ...(system === '' ? [] : [{ role: 'system', content: system } as const]),
      ...before,
      ...(begun ? [prefill(entry)] : []),
    ];
  }
}

function prefill(entry: Entry): Turn {
  const { content, reasoning } = entry;
  return { role: 'assistant', content, ...(reasoning === '' ? {} : { reasoning_content: reasoning }) };
}

function modelOf(model: string | null): Partial<MessageFields> {
  return model === null ? {} : { model };
}

/** Open conversations: one that is being written is found again as it is. */
class Chats {
  readonly #open = new Map<string, Chat>();

  keep(id: string, chat: Chat): void {
    this.#open.set(id, chat);
  }

  rename(id: string, title: string): void {
    const chat = this.#open.get(id);
    if (chat !== undefined) chat.title = title;
  }

  forget(id: string): void {
    this.#open.get(id)?.stop();
    this.#open.delete(id);
  }

  /** The chat with this id; a known one as it is, and then as the server has it. */
  open(id: string): Chat {
    const known = this.#open.get(id);
    if (known !== undefined) {
      void known.refresh();
      return known;
    }
    const chat = new Chat();
    this.keep(id, chat);
    void chat.load(id);
    return chat;
  }
}

export const chats = new Chats();
