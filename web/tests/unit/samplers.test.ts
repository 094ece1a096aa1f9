import { describe, expect, it } from 'vitest';
import { changed, defaultOf, fromLines, GROUPS, toLines, type Field } from '../../src/lib/samplers';

const fields: readonly Field[] = GROUPS.flatMap((group) => group.fields);
const field = (name: string): Field => {
  const found = fields.find((each) => each.name === name);
  if (found === undefined) throw new Error(name);
  return found;
};

describe('samplers', () => {
  it('stand once each, with defaults inside their sliders', () => {
    expect(new Set(fields.map(({ name }) => name)).size).toBe(fields.length);
    for (const each of fields) {
      if (each.kind !== 'number') continue;
      expect(each.fallback).toBeGreaterThanOrEqual(each.min);
      expect(each.fallback).toBeLessThanOrEqual(each.max);
    }
  });

  it('have the defaults of the server, as a person writes them', () => {
    expect(defaultOf(field('min_p'), { min_p: 0.05000000074505806 })).toBe(0.05);
    expect(defaultOf(field('seed'), { seed: 4294967295 })).toBe(-1);
    expect(defaultOf(field('top_k'), {})).toBe(40);
    expect(defaultOf(field('stop'), { stop: 3 })).toEqual([]);
  });

  it('are sent only where they differ', () => {
    const defaults = { temperature: 0.7, samplers: ['top_k', 'temperature'] };
    const once = changed({}, field('temperature'), 0.2, defaults);
    expect(once).toEqual({ temperature: 0.2 });
    expect(changed(once, field('temperature'), 0.7, defaults)).toEqual({});
    expect(changed({}, field('samplers'), ['top_k', 'temperature'], defaults)).toEqual({});
    expect(changed({}, field('samplers'), ['top_k'], defaults)).toEqual({ samplers: ['top_k'] });
  });

  it('that are lists survive being lines', () => {
    const list = ['\n', ':', '\\n', 'a\tb'];
    expect(fromLines(toLines(list))).toEqual(list);
    expect(fromLines('a\n\nb\n')).toEqual(['a', 'b']);
  });
});
