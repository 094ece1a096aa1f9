import { describe, expect, it } from 'vitest';
import { href, parseRoute } from '../../src/lib/router.svelte';

describe('addresses', () => {
  it('are read back as they were written', () => {
    expect(parseRoute(href.chat())).toMatchObject({ page: 'chat', id: null });
    expect(parseRoute(href.chat('a/b c'))).toMatchObject({ page: 'chat', id: 'a/b c' });
    expect(parseRoute(href.compare())).toMatchObject({ page: 'compare' });
    expect(parseRoute(href.runs())).toMatchObject({ page: 'runs' });
    expect(parseRoute(href.run('grpo 1%'))).toMatchObject({ page: 'run', name: 'grpo 1%' });
    expect(parseRoute(href.step('grpo', 12))).toMatchObject({ page: 'step', name: 'grpo', step: 12 });
  });

  it('that mean nothing are the chat; a bad step is its run', () => {
    expect(parseRoute('')).toMatchObject({ page: 'chat', id: null });
    expect(parseRoute('#/nonsense/x')).toMatchObject({ page: 'chat', id: null });
    expect(parseRoute('#/c/%')).toMatchObject({ page: 'chat', id: '%' });
    expect(parseRoute('#/runs/a/steps/x')).toMatchObject({ page: 'run', name: 'a' });
  });

  it('carry a query', () => {
    expect(parseRoute('#/?model=m%201').query.get('model')).toBe('m 1');
  });
});
