// What all charts of a page share: the step under the pointer, the zoom, what is hidden.
import { SvelteSet } from 'svelte/reactivity';
import type { Range } from './scale';

export class ChartView {
  /** The step that every chart reads out; null: the last one. */
  cursor: number | null = $state(null);
  /** The steps that are shown; null: all. */
  zoom: Range | null = $state.raw(null);
  /** Series by id, of which the charts draw nothing. */
  readonly hidden = new SvelteSet<string>();

  toggle(id: string): void {
    if (!this.hidden.delete(id)) this.hidden.add(id);
  }

  /** Show only this one; all again, if it was the only one. */
  solo(id: string, all: readonly string[]): void {
    const alone = all.every((other) => other === id || this.hidden.has(other)) && !this.hidden.has(id);
    this.hidden.clear();
    if (!alone) for (const other of all) if (other !== id) this.hidden.add(other);
  }

  /** Zoom about a step, never beyond the whole; factor < 1 shows less. */
  scaleBy(factor: number, about: number, whole: Range): void {
    const [low, high] = this.zoom ?? whole;
    this.set([about - (about - low) * factor, about + (high - about) * factor], whole);
  }

  /** Move by a share of what is shown. */
  pan(share: number, whole: Range): void {
    if (!this.zoom) return;
    const [low, high] = this.zoom;
    const distance = Math.max(whole[0] - low, Math.min(whole[1] - high, (high - low) * share));
    this.zoom = [low + distance, high + distance];
  }

  set([low, high]: Range, whole: Range): void {
    const from = Math.max(whole[0], Math.min(low, high));
    const to = Math.min(whole[1], Math.max(low, high));
    if (to - from < 2) return; // less than three steps is no curve
    this.zoom = from <= whole[0] && to >= whole[1] ? null : [from, to];
  }
}
