// What the server keeps of conversations, and what it says of itself: /api/conversations, /api/session, /v1/models.

export type Role = 'user' | 'assistant';
/** Text, its log-probability, and the likeliest alternatives as [text, log-probability]. */
export type Token = [text: string, logprob: number, top: [text: string, logprob: number][]];

export interface Attachment {
  name: string;
  kind: 'text' | 'pdf';
  size_bytes: number;
  text: string;
  n_pages?: number;
}

/** llama.cpp's timings, and what only the page can know: how long the user waited for the first token. */
export interface Timings {
  cache_n?: number;
  prompt_n?: number;
  prompt_ms?: number;
  prompt_per_second?: number;
  predicted_n?: number;
  predicted_ms?: number;
  predicted_per_second?: number;
  first_token_ms?: number;
  thinking_ms?: number;
  finish_reason?: string;
}

export interface Message {
  id: string;
  parent: string | null;
  role: Role;
  content: string;
  reasoning?: string | null;
  model?: string | null;
  created_at: number;
  timings?: Timings | null;
  tokens?: Token[] | null;
  attachments?: Attachment[] | null;
}

/** What a message is made of when it is written or rewritten. */
export type MessageFields = Omit<Message, 'id' | 'parent' | 'role' | 'created_at'>;

export type SamplingValue = number | string | boolean | string[];
export type Sampling = Record<string, SamplingValue>;

/** What a conversation is asked with: only what differs from the model's defaults. */
export interface ConversationSettings {
  system?: string;
  model?: string;
  sampling?: Sampling;
}

export interface ConversationSummary {
  id: string;
  title: string;
  folder: string | null;
  model: string | null;
  created_at: number;
  updated_at: number;
  pinned: boolean;
  n_messages: number;
}

export interface Conversation extends ConversationSummary {
  settings: ConversationSettings;
  current: string | null;
  messages: Message[];
}

export interface Session {
  user: string | null;
  defaults: Sampling;
  runs: boolean;
  /** Whether there are conversations at all, and whether they outlive the server. */
  conversations?: boolean;
  kept?: boolean;
  version: string;
}

export interface Model {
  id: string;
  aliases?: string[];
  status?: { value: string };
  max_model_len?: number;
  meta?: { n_ctx?: number; n_ctx_train?: number; ftype?: string; weights_version?: number; size?: number };
}
