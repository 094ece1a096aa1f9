import { describe, expect, it } from 'vitest';
import { leafBelow, pathTo, siblings, subtree, textForModel, titleOf } from '../../src/lib/conversations';
import { grouped } from '../../src/lib/list.svelte';
import type { ConversationSummary } from '../../src/lib/types';

//      a ── b ── c
//      │    └─── d ── e
//      └ (x is another root)
const tree = [
  { id: 'a', parent: null },
  { id: 'b', parent: 'a' },
  { id: 'c', parent: 'b' },
  { id: 'd', parent: 'b' },
  { id: 'e', parent: 'd' },
  { id: 'x', parent: null },
];

describe('the tree', () => {
  it('is read from a root to a leaf', () => {
    expect(pathTo(tree, 'e').map(({ id }) => id)).toEqual(['a', 'b', 'd', 'e']);
    expect(pathTo(tree, null)).toEqual([]);
    expect(pathTo(tree, 'gone')).toEqual([]);
  });

  it('ends in spite of a circle', () => {
    const circle = [{ id: 'a', parent: 'b' }, { id: 'b', parent: 'a' }];
    expect(pathTo(circle, 'a')).toHaveLength(2);
  });

  it('has versions, and goes on with the newest', () => {
    expect(siblings(tree, { id: 'c', parent: 'b' }).map(({ id }) => id)).toEqual(['c', 'd']);
    expect(siblings(tree, { id: 'a', parent: null }).map(({ id }) => id)).toEqual(['a', 'x']);
    expect(leafBelow(tree, 'a')).toBe('e');
    expect(leafBelow(tree, 'c')).toBe('c');
  });

  it('is cut with all that follows', () => {
    expect([...subtree(tree, 'b')].sort()).toEqual(['b', 'c', 'd', 'e']);
    expect([...subtree(tree, 'x')]).toEqual(['x']);
  });
});

describe('titles and texts', () => {
  it('takes the first line, cut between words', () => {
    expect(titleOf('  Hello   there\nmore')).toBe('Hello there');
    const long = titleOf('one two three four five six seven eight nine ten eleven twelve thirteen');
    expect(long).toMatch(/^one two .*[a-z]…$/);
    expect(long.length).toBeLessThanOrEqual(61);
    expect(titleOf('字'.repeat(100))).toBe(`${'字'.repeat(60)}…`);
    expect(titleOf('   ')).toBe('');
  });

  it('gives files to the model before the message, in fences that they cannot close', () => {
    const attachments = [{ name: 'a.md', kind: 'text' as const, size_bytes: 1, text: 'x\n````\ny' }];
    expect(textForModel({ content: 'Why?', attachments })).toBe('a.md:\n`````\nx\n````\ny\n`````\n\nWhy?');
    expect(textForModel({ content: 'Why?', attachments: null })).toBe('Why?');
  });
});

describe('the list', () => {
  const now = new Date(2026, 10, 22, 12).getTime();
  const item = (id: string, hoursAgo: number, more: Partial<ConversationSummary> = {}): ConversationSummary => ({
    id, title: id, folder: null, model: null, created_at: 0, updated_at: now / 1000 - hoursAgo * 3600, pinned: false,
    n_messages: 1, ...more,
  });

  it('puts pins and folders before days', () => {
    const groups = grouped(
      [item('t', 1), item('y', 13), item('w', 80), item('o', 500), item('p', 900, { pinned: true, folder: 'z' }),
        item('f2', 2, { folder: 'z' }), item('f1', 3, { folder: 'b' })],
      now,
    );
    expect(groups.map(({ kind, name, items }) => [kind, name, items.map(({ id }) => id).join()])).toEqual([
      ['pinned', '', 'p'], ['folder', 'b', 'f1'], ['folder', 'z', 'f2'], ['today', '', 't'], ['yesterday', '', 'y'],
      ['week', '', 'w'], ['older', '', 'o'],
    ]);
  });
});
