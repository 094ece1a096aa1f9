// The page is told by what follows `#`: no server has to know the addresses, and the back button works.
//   #/  #/c/ID  #/compare  #/runs  #/runs/NAME  #/runs/NAME/steps/N      (?a=b after them: `query`)
export type Route =
  | { page: 'chat'; id: string | null; query: URLSearchParams }
  | { page: 'compare'; query: URLSearchParams }
  | { page: 'runs'; query: URLSearchParams }
  | { page: 'run'; name: string; query: URLSearchParams }
  | { page: 'step'; name: string; step: number; query: URLSearchParams };

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // a stray % is a name like any other
  }
}

/** The route of a location's hash. What is none of them is the chat page. */
export function parseRoute(hash: string): Route {
  const [path = '', search = ''] = hash.replace(/^#/, '').split('?', 2);
  const query = new URLSearchParams(search);
  const parts = path.split('/').filter(Boolean).map(decoded);
  const [first, second, third, fourth] = parts;
  if (first === 'c' && second !== undefined) return { page: 'chat', id: second, query };
  if (first === 'compare') return { page: 'compare', query };
  if (first === 'runs') {
    if (second === undefined) return { page: 'runs', query };
    const step = Number(fourth);
    if (third === 'steps' && Number.isInteger(step) && step >= 0) return { page: 'step', name: second, step, query };
    return { page: 'run', name: second, query };
  }
  return { page: 'chat', id: null, query };
}

export const href = {
  chat: (id?: string): string => (id === undefined ? '#/' : `#/c/${encodeURIComponent(id)}`),
  compare: (): string => '#/compare',
  runs: (): string => '#/runs',
  run: (name: string): string => `#/runs/${encodeURIComponent(name)}`,
  step: (name: string, step: number): string => `#/runs/${encodeURIComponent(name)}/steps/${step}`,
};

class Router {
  route: Route = $state.raw(parseRoute(location.hash));

  constructor() {
    addEventListener('hashchange', () => (this.route = parseRoute(location.hash)));
  }

  /** Go to an address as of `href`. replace: the back button does not come back here. */
  go(hash: string, replace = false): void {
    if (!replace) {
      location.hash = hash;
      return;
    }
    history.replaceState(history.state, '', hash);
    this.route = parseRoute(hash);
  }
}

export const router = new Router();
