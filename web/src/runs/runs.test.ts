import { describe, expect, test } from 'vitest';
import { ends, others, panels, phases, unitOf } from './catalogue';
import { curvesOf, withRows } from './columns';
import { diff, groups, stem } from './diff';
import { seriesOf, shortName, type Drawing } from './drawing';
import { eventOf, eventsOf } from './events';
import { compareHref, namesOf, nearestStep } from './links';
import { ago, matches, secondsLeft, sorted } from './runList';
import { amount, available, byProblem, scaleFor, tokensOf, visible } from './tokens';
import { settingsOf } from './toml';
import type { RolloutRow, RunSummary } from './types';

describe('settings', () => {
  const text = `
model = "smollm2"   # a comment = with a sign
[optimizer]
learning_rate = 1e-05
betas = [ 0.9,
  0.999, ] # two
[reward]
"math?parse=lenient" = 0.5
'a#b' = '''x = "1"
# no comment'''
[[stage]]
a.b = 1_000
[[stage]]
on = true
empty = []
`;

  test('tables, quoted keys, lists and strings over lines, arrays of tables', () => {
    const found = Object.fromEntries(settingsOf(text).map(({ path, value }) => [path, value]));
    expect(found).toEqual({
      model: '"smollm2"',
      'optimizer.learning_rate': '0.00001',
      'optimizer.betas': '[0.9, 0.999]',
      'reward.math?parse=lenient': '0.5',
      'reward.a#b': `'''x = "1"\n# no comment'''`,
      'stage[0].a.b': '1000',
      'stage[1].on': 'true',
      'stage[1].empty': '[]',
    });
  });

  test('numbers and quotes of different form are equal; what one run lacks is null', () => {
    const rows = diff(['a = 1e-05\nb = "x"\n[t]\nc = 1', "a = 0.00001\nb = 'x'\n[t]\nd = 2"]);
    expect(rows.map(({ path, values, differs }) => [path, ...values, differs])).toEqual([
      ['a', '0.00001', '0.00001', false],
      ['b', '"x"', '"x"', false],
      ['t.c', '1', null, true],
      ['t.d', null, '2', true],
    ]);
  });

  test('runs that differ in seed and name are one group', () => {
    const config = (seed: number, rate: number): string => `rate = ${rate}\n[run]\nseed = ${seed}\nname = "x-${seed}"`;
    const found = groups([
      { name: 'grpo-0', config: config(0, 1) },
      { name: 'fast', config: config(0, 2) },
      { name: 'grpo-seed1', config: config(1, 1) },
      { name: 'bare', config: '' },
      { name: 'bare2', config: '' },
    ]);
    expect(found).toEqual([
      { label: 'grpo', runs: ['grpo-0', 'grpo-seed1'] },
      { label: 'fast', runs: ['fast'] },
      { label: 'bare', runs: ['bare'] },
      { label: 'bare2', runs: ['bare2'] },
    ]);
  });

  test('two groups of one stem have different labels', () => {
    const found = groups(['a-0', 'a-1', 'a-2', 'a-3'].map((name, i) => ({ name, config: `rate = ${i >> 1}` })));
    expect(new Set(found.map(({ label }) => label)).size).toBe(2);
    expect(['largest-0', 'x_seed12', '123', 'r1-zero'].map(stem)).toEqual(['largest', 'x', '123', 'r1-zero']);
  });
});

describe('panels', () => {
  const names = ['reward/mean', 'reward/part/b', 'reward/part/a', 'eval/accuracy', 'eval/accuracy/low', 'eval/accuracy/high', 'odd'];

  test('of one run related numbers share a chart; of several each has its own', () => {
    expect(panels(names).map(({ metrics }) => metrics)).toEqual([['reward/mean'], ['reward/part/a', 'reward/part/b'], ['eval/accuracy']]);
    expect(panels(names, true).map(({ id }) => id)).toEqual(['reward', 'reward/part/a', 'reward/part/b', 'accuracy']);
  });

  test('everything else is somewhere, but for the ends of intervals', () => {
    expect(others(names, panels(names)).map(({ id }) => id)).toEqual(['odd']);
    expect(ends('eval/accuracy', names)).toEqual(['eval/accuracy/low', 'eval/accuracy/high']);
    expect(unitOf('memory_bytes')).toBe('bytes');
    expect(unitOf('seconds/update')).toBe('seconds');
    expect(unitOf('tokens_per_s/update')).toBe('number');
  });

  test('phases: what a step is the sum of, in its order', () => {
    const seconds = ['step', 'storing', 'forward', 'backward', 'optimizer', 'update', 'sampling'].map((name) => `seconds/${name}`);
    expect(phases([...seconds, 'critic/seconds/forward'])).toEqual(['seconds/sampling', 'seconds/update', 'seconds/storing']);
  });
});

describe('curves', () => {
  test('steps without a value are left out; extremes of bins become a band', () => {
    const found = curvesOf({ step: [1, 2, 3], a: [1, null, 3], 'a:min': [0, null, 2], 'a:max': [2, null, 5] });
    expect(found['a']).toEqual({ points: { x: [1, 3], y: [1, 3] }, extremes: { x: [1, 3], low: [0, 2], high: [2, 5] } });
    expect(Object.keys(found)).toEqual(['a']);
  });

  test('rows go on; those of a resumed run replace what they repeat', () => {
    const start = curvesOf({ step: [1, 2, 3], a: [1, 2, 3], b: [1, null, null] });
    const grown = withRows(start, [{ step: 4, a: 4, c: null }]);
    expect(grown['a']!.points).toEqual({ x: [1, 2, 3, 4], y: [1, 2, 3, 4] });
    const resumed = withRows(grown, [{ step: 2, a: 20 }, { step: 3, a: 30 }]);
    expect(resumed['a']!.points).toEqual({ x: [1, 2, 3], y: [1, 20, 30] });
    expect(resumed['b']!.points).toEqual({ x: [1], y: [1] });
    expect(start['a']!.points.x).toEqual([1, 2, 3]);
  });

  const drawing: Drawing = { smoothing: 'ema', amount: 0.6, seeds: 'range' };
  const panel = { id: 'x', metrics: ['reward/mean'], scale: 'linear', unit: 'number' } as const;
  const steps = Array.from({ length: 30 }, (_, i) => i);
  const curves = (run: string) => curvesOf({ step: steps, 'reward/mean': steps.map((i) => i * (run === 'a' ? 1 : 2)) });

  test('one run: smoothed with its values behind; seeds: one curve with a band; or every run', () => {
    const [single] = seriesOf(panel, [{ label: 'a', runs: ['a'] }], curves, drawing);
    expect(single!.raw).toBeDefined();
    const [mean] = seriesOf(panel, [{ label: 'ab', runs: ['a', 'b'] }], curves, { ...drawing, amount: 0 });
    expect([mean!.count, mean!.line.y[2], mean!.band!.low[2], mean!.band!.high[2]]).toEqual([2, 3, 2, 4]);
    const lines = seriesOf(panel, [{ label: 'ab', runs: ['a', 'b'] }], curves, { ...drawing, seeds: 'lines' });
    expect(lines.map(({ label, colour }) => [label, colour])).toEqual([['a', lines[0]!.colour], ['b', lines[0]!.colour]]);
  });

  test('names of a chart without what they share', () => {
    expect(shortName('eval/accuracy/strict', ['eval/accuracy', 'eval/accuracy/strict'])).toBe('accuracy/strict');
    expect(shortName('loss', ['loss'])).toBe('loss');
  });
});

describe('events', () => {
  test('lines cut anywhere, also inside a character; comments are none', async () => {
    const bytes = new TextEncoder().encode(': hello\n\nevent: metrics\ndata: {"a":"é"}\n\nevent: state\r\ndata: 1\r\n\r\n');
    const body = new ReadableStream<Uint8Array>({
      start(controller) {
        for (const byte of bytes) controller.enqueue(new Uint8Array([byte]));
        controller.close();
      },
    });
    const found = [];
    for await (const event of eventsOf(body)) found.push(event);
    expect(found).toEqual([{ event: 'metrics', data: '{"a":"é"}' }, { event: 'state', data: '1' }]);
    expect(eventOf('data: a\ndata: b')).toEqual({ event: 'message', data: 'a\nb' });
  });
});

describe('list', () => {
  const run = (name: string, more: Partial<RunSummary> = {}): RunSummary => ({
    name, verb: 'grpo', state: 'finished', step: 1, steps: 10, started_at: '2026-01-01T00:00:00Z', updated_at: '',
    model: null, seed: 0, family: '', findings: 0, last: {}, ...more,
  });

  test('names as people count; what has no value comes last in both directions', () => {
    const names = (found: RunSummary[]): string[] => found.map(({ name }) => name);
    expect(names(sorted([run('r-10'), run('r-9')], { column: 'name', descending: false }))).toEqual(['r-9', 'r-10']);
    const some = [run('none'), run('low', { last: { 'reward/mean': 1 } }), run('high', { last: { 'reward/mean': 2 } })];
    expect(names(sorted(some, { column: 'reward', descending: true }))).toEqual(['high', 'low', 'none']);
    expect(names(sorted(some, { column: 'reward', descending: false }))).toEqual(['low', 'high', 'none']);
  });

  test('filter, time left, ago, addresses', () => {
    expect(matches(run('largest-0'), 'GRPO larg')).toBe(true);
    expect(matches(run('largest-0'), 'ppo')).toBe(false);
    expect(secondsLeft({ state: 'running', step: 4, steps: 10, seconds_per_step: 2 })).toBe(12);
    expect(secondsLeft({ state: 'stopped', step: 4, steps: 10, seconds_per_step: 2 })).toBeNull();
    expect(ago('2026-01-01T00:00:00Z', 'en', Date.parse('2026-01-01T02:00:00Z'))).toContain('2');
    const address = compareHref(['a b', 'c,d']);
    expect(namesOf('a b', new URLSearchParams(address.split('?')[1]))).toEqual(['a b', 'c,d']);
    expect([nearestStep([0, 10], 7), nearestStep([], 7)]).toEqual([10, null]);
  });
});

describe('tokens', () => {
  const row: RolloutRow = {
    problem_id: 'p', index: 0, prompt: null, answer: '2', text: 'a b', finish: 'eos', weights_version: 0, prompt_length: 1,
    score: { total: 1, parts: {}, parsed: '2', verdict: '', failure: null },
    token_ids: [5, 6, 7, 8], mask: [0, 1, 0, 1], tokens: ['?', 'a', '\n', 'b'],
    logprobs: [0, -1, 0, -2], learner_logprobs: [0, -1.5, 0, null], ratios: [0, 2, 0, 0.5], advantages: [0, 0.5, 0, -0.5],
  };

  test('the answer begins after the prompt; what is masked has no numbers', () => {
    const tokens = tokensOf(row);
    expect(tokens.map(({ at, counted }) => [at, counted])).toEqual([[1, true], [2, false], [3, true]]);
    expect(tokens[1]!.logprob).toBeNaN();
    expect(visible(tokens[1]!)).toBe('⏎\n');
    expect(visible(tokensOf({ ...row, tokens: null })[0]!)).toBe('⟨6⟩');
  });

  test('a ratio of 2 is as strong as one of a half; only what is known is offered', () => {
    const tokens = tokensOf(row);
    expect(amount(tokens[0]!, 'ratio')).toBeCloseTo(-amount(tokens[2]!, 'ratio'), 12);
    expect(amount(tokens[0]!, 'mismatch')).toBeCloseTo(-0.5, 12);
    expect(available([tokens])).toEqual(['advantage', 'ratio', 'mismatch', 'logprob']);
    expect(scaleFor('advantage', [tokens])).toEqual({ hue: 'diverging', limit: 0.5 });
    expect(scaleFor('logprob', [tokens]).hue).toBe('sequential');
  });

  test('groups keep the order of their first answer', () => {
    const found = byProblem([row, { ...row, problem_id: 'q' }, { ...row, index: 1 }]);
    expect(found.map((group) => group.map(({ problem_id, index }) => `${problem_id}${index}`))).toEqual([['p0', 'p1'], ['q0']]);
  });
});
