// Addresses of the run pages beyond the router's own: several runs, a step with its view, a chat with a checkpoint.
import { href } from '../lib/router.svelte';

/** One run's page with others beside it: #/runs/A?with=B&with=C. */
export function compareHref(names: readonly string[]): string {
  const [first, ...rest] = names;
  if (first === undefined) return href.runs();
  const search = new URLSearchParams(rest.map((name) => ['with', name]));
  return rest.length > 0 ? `${href.run(first)}?${search}` : href.run(first);
}

/** The names of a run page, each once. */
export function namesOf(name: string, query: URLSearchParams): string[] {
  return [...new Set([name, ...query.getAll('with')])];
}

/** The stored step that is nearest. */
export function nearestStep(steps: readonly number[], wanted: number): number | null {
  let best: number | null = null;
  for (const step of steps) if (best === null || Math.abs(step - wanted) < Math.abs(best - wanted)) best = step;
  return best;
}

export function chatHref(model: string): string {
  return `#/?${new URLSearchParams({ model })}`;
}
