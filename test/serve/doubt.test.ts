/** In doubt, with real processes: the destination dies with COMMIT in its hands, and the source is a `towline serve`. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import type { Recovered } from '#towline/index.js';
import { ServeClient } from '#towline/serve/client.js';
import { Host } from '#towline/serve/host.js';
import { callMethod } from '#towline/serve/methods.js';
import { directory, lines, serve, towline, type Serving } from '../support/cli.js';

interface InDoubt {
  readonly path: string;
  readonly uuid: string;
  readonly session: string;
  readonly source: Serving;
}

/** The spec of the function at each side. */
const spec = (uuid: string): string[] => ['--kind', 'vf', '--uuid', uuid, '--name', 'v', '--namespace', '1'];

/** A destination that dies at `point`, once it listens. */
async function dying(t: ExecutionContext, path: string, uuid: string, point: string) {
  const link = `unix://${join(path, 'link')}`;
  const child = spawn(
    process.execPath,
    [fileURLToPath(new URL('destination-process.js', import.meta.url)), path, uuid, link, point],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  t.teardown(() => child.kill('SIGKILL'));
  const died = once(child, 'exit') as Promise<[number | null, string | null]>;
  await Promise.race([once(child.stdout, 'data'), died]);
  return { link, died };
}

/** A source in doubt, whose destination died at `point`. */
async function inDoubt(t: ExecutionContext, point: string): Promise<InDoubt> {
  t.timeout(120_000);
  const path = await directory(t);
  const source = await serve(t, path, 'a');
  const uuid = crypto.randomUUID();
  t.is((await towline(source.socket, 'provision', ...spec(uuid))).code, 0);
  const { link, died } = await dying(t, path, uuid, point);
  const moved = await towline(source.socket, 'migrate', 'v', '--to', link, '--max-downtime', '60000', '--json');
  t.is(moved.code, 4, moved.out + moved.err);
  t.is((await died)[1], 'SIGKILL');
  const last = lines(moved.out).at(-1) as { error: { code: string; details: { report: { session: string } } } };
  t.is(last.error.code, 'ERR_TOWLINE_IN_DOUBT');
  return { path, uuid, source, session: last.error.details.report.session };
}

/** The destination comes back with its journal, and answers who asks. */
async function answering(
  t: ExecutionContext,
  { path, uuid }: Pick<InDoubt, 'path' | 'uuid'>,
): Promise<{ link: string; serving: Serving }> {
  const serving = await serve(t, path, 'b');
  t.is((await towline(serving.socket, 'provision', ...spec(uuid))).code, 0);
  const link = join(path, 'answers');
  void towline(serving.socket, 'receive', 'v', '--from', `unix://${link}`);
  while (!existsSync(link)) await new Promise((resolve) => setTimeout(resolve, 20));
  return { link: `unix://${link}`, serving };
}

/** What `explain` says: its exit code and the codes of the reasons. */
async function explained(socket: string): Promise<[number, unknown[]]> {
  const { code, out } = await towline(socket, 'explain', 'v', '--json');
  const [answer] = lines(out) as [{ reasons?: { code: string }[] }];
  return [code, (answer.reasons ?? []).map((r) => r.code)];
}

test.serial('in doubt: explained, left alone, and said again as long as nobody answers', async (t) => {
  const { source, session, uuid } = await inDoubt(t, 'destination:commit-received');
  t.deepEqual(await explained(source.socket), [3, ['in-doubt']]);
  const listed = lines((await towline(source.socket, 'list', '--json')).out)[0] as { functions: object[] };
  t.like(listed.functions[0], { uuid, inDoubt: session });
  t.regex((await towline(source.socket, 'list')).out, /v +vf +in doubt/);
  t.regex((await towline(source.socket, 'explain', 'v')).out, /mend: .*towline recover/);
  for (const command of [
    ['release', 'v'],
    ['configure', 'v', '--queues', '2'],
    ['conformance', 'v', '--destructive'],
    ['migrate', 'v', '--to', 'unix:///nowhere'],
    ['receive', 'v', '--from', 'tcp://127.0.0.1:0'],
  ]) {
    const refused = await towline(source.socket, ...command, '--json');
    t.is(refused.code, 4, command.join(' '));
    t.like(lines(refused.out)[0], { error: { code: 'ERR_TOWLINE_IN_DOUBT', function: uuid, details: { session } } });
  }
  const recovered = await towline(source.socket, 'recover', '--json');
  t.is(recovered.code, 4);
  t.like(lines(recovered.out)[0], {
    session,
    verdict: 'in-doubt',
    answer: null,
    settled: [{ function: uuid, action: 'kept-stopped' }],
  });
});

test.serial(
  'the destination had not committed: the source resumes the function, and migrates it after all',
  async (t) => {
    const stage = await inDoubt(t, 'destination:commit-received');
    const { link, serving } = await answering(t, stage);
    const recovered = await towline(stage.source.socket, 'recover', '--peer', link, '--json');
    t.is(recovered.code, 0, recovered.out);
    t.like(lines(recovered.out)[0], {
      session: stage.session,
      verdict: 'resume-source',
      answer: 'refused',
      settled: [{ function: stage.uuid, action: 'resumed' }],
    });
    t.deepEqual(await explained(stage.source.socket), [0, []]);
    // A second time there is nothing to settle, and the one that is named changes nothing.
    t.is((await towline(stage.source.socket, 'recover')).out, 'nothing to settle\n');
    const again = await towline(stage.source.socket, 'recover', '--session', stage.session, '--json');
    t.like(lines(again.out)[0], { verdict: 'resume-source', settled: [] });
    const moved = await towline(stage.source.socket, 'migrate', 'v', '--to', link, '--max-downtime', '60000', '--json');
    t.like(lines(moved.out).at(-1), { outcome: 'committed' }, moved.out);
    t.is((await explained(serving.socket))[0], 0);
  },
);

test.serial('the destination had committed: the source releases the function', async (t) => {
  const stage = await inDoubt(t, 'destination:commit-durable');
  const { link } = await answering(t, stage);
  const recovered = await towline(stage.source.socket, 'recover', '--peer', link, '--json');
  t.is(recovered.code, 0, recovered.out);
  t.like(lines(recovered.out)[0], {
    verdict: 'released',
    answer: 'committed',
    settled: [{ function: stage.uuid, action: 'released' }],
  });
  t.is((await towline(stage.source.socket, 'explain', 'v')).code, 5);
  // Its controller and its memory are free again.
  t.is((await towline(stage.source.socket, 'provision', ...spec(stage.uuid))).code, 0);
  t.deepEqual(await explained(stage.source.socket), [0, []]);
});

test.serial(
  'a destination that is declared dead: journaled with the reason, and the function runs again',
  async (t) => {
    const { source, session, uuid, path } = await inDoubt(t, 'destination:commit-received');
    const dead = ['recover', '--declare-destination-dead', '--json'];
    for (const wrong of [dead, [...dead, '--session', session], [...dead, '--reason', 'it burnt']]) {
      t.is((await towline(source.socket, ...wrong)).code, 2, wrong.join(' '));
    }
    const reason = 'the rack burnt down on Sunday';
    const recovered = await towline(source.socket, ...dead, '--session', session, '--reason', reason);
    t.is(recovered.code, 0, recovered.out);
    t.like(lines(recovered.out)[0], {
      session,
      verdict: 'resume-source',
      answer: null,
      settled: [{ function: uuid, action: 'resumed' }],
    });
    const client = await ServeClient.connect(source.socket);
    t.like(await client.call('sessions', {}), [{ session, state: 'declared-dead', verdict: 'resume-source' }]);
    client.close();
    const journal = join(path, 'journal-a');
    const kept = readdirSync(journal).map((name) => readFileSync(join(journal, name), 'latin1'));
    t.true(kept.some((text) => text.includes(reason)));
    t.deepEqual(await explained(source.socket), [0, []]);
  },
);

test.serial('the doubt outlives the source: what is provisioned again with that UUID is left alone', async (t) => {
  const stage = await inDoubt(t, 'destination:commit-durable');
  await stage.source.end('SIGKILL');
  const source = await serve(t, stage.path, 'a');
  t.is((await towline(source.socket, 'provision', ...spec(stage.uuid))).code, 0);
  t.deepEqual(await explained(source.socket), [3, ['in-doubt']]);
  t.is((await towline(source.socket, 'release', 'v')).code, 4);
  const { link } = await answering(t, stage);
  const recovered = await towline(source.socket, 'recover', '--peer', link, '--json');
  t.is(recovered.code, 0, recovered.out);
  // What was in doubt went with its holder; the new one is not touched.
  t.like(lines(recovered.out)[0], { verdict: 'released', settled: [] });
  t.deepEqual(await explained(source.socket), [0, []]);
});

test.serial('a function that can not be released after it was recovered is told so, with the reason', async (t) => {
  t.timeout(120_000);
  const path = await directory(t);
  const uuid = crypto.randomUUID();
  const host = await Host.open({
    embedded: [{ name: 'a', namespaces: [{ path: join(path, 'namespace'), sizeBytes: 4n << 20n }] }],
    journal: join(path, 'journal-a'),
    memoryBytes: 4n << 20n,
  });
  t.teardown(() => host.close());
  await host.provision(undefined, { kind: 'vf', uuid, name: 'v', namespaces: [1] }, {});
  const context = { signal: new AbortController().signal, emit: () => undefined };
  const { link, died } = await dying(t, path, uuid, 'destination:commit-durable');
  const policy = { maxDowntimeMs: 60_000 };
  await t.throwsAsync(callMethod(host, 'migrate', { functions: ['v'], to: link, policy }, context), {
    code: 'ERR_TOWLINE_IN_DOUBT',
  });
  await died;
  const answers = await answering(t, { path, uuid });
  const release = host.release.bind(host);
  host.release = async () => {
    throw new Error('the device does not let go');
  };
  const recovered = (await callMethod(host, 'recover', { peer: answers.link }, context)) as Recovered[];
  t.is(recovered[0]?.verdict, 'released', 'the verdict stands');
  t.like(recovered[0]?.settled[0], { function: uuid, action: 'failed', why: 'the device does not let go' });
  host.release = release;
});
