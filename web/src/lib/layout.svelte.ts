// What of the frame is open. On a narrow page the sidebar and the settings lie over it, one at a time.
import { settings } from './settings.svelte';

class Layout {
  narrow = $state(false);
  /** Too narrow for settings beside the conversation. */
  medium = $state(false);
  sideOver = $state(false);
  drawer = $state(false);
  help = $state(false);
  searching = $state(0);

  constructor() {
    this.#watch('(max-width: 820px)', (matches) => {
      this.narrow = matches;
      if (!matches) this.sideOver = false;
    });
    this.#watch('(max-width: 1180px)', (matches) => (this.medium = matches));
  }

  get side(): boolean {
    return this.narrow ? this.sideOver : settings.sidebar;
  }

  setSide(open: boolean): void {
    if (this.narrow) this.sideOver = open;
    else settings.set({ sidebar: open });
  }

  /** After going somewhere: what lies over the page goes away. */
  went(): void {
    this.sideOver = false;
    if (this.medium) this.drawer = false;
  }

  search(): void {
    this.setSide(true);
    this.searching += 1;
  }

  #watch(query: string, told: (matches: boolean) => void): void {
    const media = globalThis.matchMedia?.(query);
    if (media === undefined) return;
    told(media.matches);
    media.addEventListener('change', (event) => told(event.matches));
  }
}

export const layout = new Layout();
