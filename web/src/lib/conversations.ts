// A conversation is a tree of messages: an edit or another answer is a sibling of what it replaces. What is read on
// the page is the path from a root to `current`. Functions of values; the server keeps the tree.
import { api } from './api';
import type {
  Conversation,
  ConversationSettings,
  ConversationSummary,
  Message,
  MessageFields,
  Role,
} from './types';

type Node = Pick<Message, 'id' | 'parent'>;

/** The messages from a root to `leaf`, in the order of reading. Empty without a leaf. */
export function pathTo<M extends Node>(messages: readonly M[], leaf: string | null): M[] {
  const byId = new Map(messages.map((message) => [message.id, message]));
  const path: M[] = [];
  for (let at = leaf === null ? undefined : byId.get(leaf); at !== undefined && !path.includes(at); ) {
    path.push(at);
    at = at.parent === null ? undefined : byId.get(at.parent);
  }
  return path.reverse();
}

/** The messages that answer the same one, `message` among them, oldest first. */
export function siblings<M extends Node>(messages: readonly M[], message: Node): M[] {
  return messages.filter((other) => other.parent === message.parent);
}

/** Where reading ends if it goes on from `id`: always with the newest answer. */
export function leafBelow<M extends Node>(messages: readonly M[], id: string): string {
  let leaf = id;
  for (;;) {
    const next = messages.findLast((message) => message.parent === leaf);
    if (next === undefined) return leaf;
    leaf = next.id;
  }
}

/** `id` and all that follows it. */
export function subtree<M extends Node>(messages: readonly M[], id: string): Set<string> {
  const found = new Set([id]);
  for (let grew = true; grew; ) {
    grew = false;
    for (const message of messages) {
      if (message.parent === null || found.has(message.id) || !found.has(message.parent)) continue;
      found.add(message.id);
      grew = true;
    }
  }
  return found;
}

/** A title from the first words of a conversation. */
export function titleOf(text: string, most = 60): string {
  const line = text.trim().split('\n', 1)[0]?.replace(/\s+/g, ' ').trim() ?? '';
  if (line.length <= most) return line;
  const cut = line.slice(0, most);
  const space = cut.lastIndexOf(' ');
  return `${cut.slice(0, space > most / 2 ? space : most).trimEnd()}…`;
}

/** What the model reads of a message: its attachments first, each in a fence that its text cannot close. */
export function textForModel(message: Pick<Message, 'content' | 'attachments'>): string {
  const files = (message.attachments ?? []).map(({ name, text }) => {
    const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map(([run]) => run.length));
    const fence = '`'.repeat(longest + 1);
    return `${name}:\n${fence}\n${text}\n${fence}`;
  });
  return [...files, message.content].filter((part) => part !== '').join('\n\n');
}

export interface Exported {
  format: string;
  version: number;
  conversations: unknown[];
}

const at = (id: string, rest = ''): string => `/api/conversations/${encodeURIComponent(id)}${rest}`;

/** The server's routes. */
export const store = {
  list: async (query: string, signal?: AbortSignal): Promise<ConversationSummary[]> => {
    const search = query === '' ? '' : `?query=${encodeURIComponent(query)}`;
    const found = await api.get<{ conversations: ConversationSummary[] }>(`/api/conversations${search}`, signal);
    return found.conversations;
  },
  create: (given: { title?: string; folder?: string; settings?: ConversationSettings }): Promise<Conversation> =>
    api.post('/api/conversations', given),
  read: (id: string, signal?: AbortSignal): Promise<Conversation> => api.get(at(id), signal),
  change: (
    id: string,
    changed: Partial<Pick<Conversation, 'title' | 'folder' | 'pinned' | 'settings' | 'current'>>,
  ): Promise<unknown> => api.patch(at(id), changed),
  remove: (id: string): Promise<unknown> => api.delete(at(id)),
  addMessage: (
    id: string,
    message: { parent: string | null; role: Role } & Partial<MessageFields>,
  ): Promise<Message> => api.post(at(id, '/messages'), message),
  changeMessage: (id: string, message: string, fields: Partial<MessageFields>): Promise<unknown> =>
    api.put(at(id, `/messages/${encodeURIComponent(message)}`), fields),
  removeMessage: (id: string, message: string): Promise<unknown> =>
    api.delete(at(id, `/messages/${encodeURIComponent(message)}`)),
  export: (id?: string): Promise<Exported> =>
    api.get(`/api/export${id === undefined ? '' : `?id=${encodeURIComponent(id)}`}`),
  import: (exported: unknown): Promise<unknown> => api.post('/api/import', exported),
};
