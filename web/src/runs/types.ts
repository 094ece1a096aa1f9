// What /api/runs… sends (etude/serve/runs.py). A metric that was not finite, or not there, is null.
export type State = 'running' | 'finished' | 'stopped';

export interface RunSummary {
  name: string;
  verb: string;
  state: State;
  /** Steps done and planned. */
  step: number | null;
  steps: number | null;
  started_at: string;
  updated_at: string;
  model: string | null;
  seed: number | null;
  /** Equal for runs that differ in their seed only. */
  family: string;
  /** How many things the doctor said. */
  findings: number;
  /** The last known value of each metric. */
  last: Record<string, number | null>;
  spark?: { name: string; values: (number | null)[] } | null;
  seconds_per_step?: number | null;
}

export interface CheckpointInfo {
  step: number;
  best: boolean;
  metric?: number | null;
  /** The name by which the chat page can load it; null where the server serves no models. */
  model?: string | null;
}

export interface Finding {
  step: number;
  sign: string;
  seen: string;
  advice: string;
  text: string;
  examples?: string[];
}

export interface RunDetail extends Omit<RunSummary, 'findings'> {
  config: string;
  checkpoints: CheckpointInfo[];
  /** The finished model's name for a chat; null without one. */
  final_model?: string | null;
  findings: Finding[];
  rollout_steps: number[];
  metric_names: string[];
}

/** `step`, and a column for each metric; of binned runs also NAME:min and NAME:max. */
export type Columns = { step: number[] } & Record<string, (number | null)[]>;

/** What has changed of a run that is followed. */
export interface StateEvent {
  state: State;
  step: number;
  rollout_step: number | null;
  /** Grows when a resumed run has gone back to a checkpoint: its rows are sent again. */
  generation: number;
}

export interface Score {
  total: number;
  parts: Record<string, number>;
  parsed: string | null;
  verdict: string;
  failure: string | null;
}

type Numbers = (number | null)[];

/** A rollout as stored; per-token arrays are as long as token_ids, and mean nothing where mask is 0. */
export interface RolloutRow {
  problem_id: string;
  index: number;
  prompt: [role: string, content: string][] | null;
  answer: string | null;
  text: string;
  finish: string;
  weights_version: number;
  prompt_length: number;
  score: Score;
  token_ids: number[];
  mask: number[];
  /** Texts of the tokens; null where the server has no tokenizer of this model. */
  tokens?: string[] | null;
  /** Positions of control tokens. */
  control?: number[];
  logprobs?: Numbers;
  learner_logprobs?: Numbers;
  old_logprobs?: Numbers;
  ratios?: Numbers;
  advantages?: Numbers;
  entropies?: Numbers;
  old_values?: Numbers;
}

/** The answers to one prompt, in numbers. */
export interface GroupInfo {
  problem_id: string;
  n: number;
  answer: string | null;
  reward_mean: number | null;
  reward_best: number | null;
  reward_worst: number | null;
}

export interface RolloutPage {
  step: number;
  total: number;
  offset: number;
  rollouts: RolloutRow[];
  groups: GroupInfo[];
  /** Why there are no texts of tokens. */
  tokens_missing: string | null;
}

/** A row of metrics.jsonl as the event stream sends it. */
export type MetricsRow = { step: number } & Record<string, number | null>;
