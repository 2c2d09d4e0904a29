import { setTimeout as sleep } from 'node:timers/promises';
import { lineOf, type DemoLine } from './line.js';
import type { Arrival, GuestReport, HostEvent, Kind, Mode, Move, Scale } from './protocol.js';
import type { Sabotage } from './sabotage.js';
import { Stage } from './stage.js';
import { wayTo } from './way.js';

/** Boots a guest in one process, moves it to another one while it works, and has all of it judged. */
export async function runKind(
  kind: Kind,
  mode: Mode,
  scale: Scale,
  sabotage: Sabotage | undefined,
  onEvent: (event: HostEvent, at: 'source' | 'destination') => void,
): Promise<DemoLine> {
  using stage = await Stage.open(kind, scale);
  const [source, destination] = stage.hosts;
  source.onEvent = (event) => onEvent(event, 'source');
  destination.onEvent = (event) => onEvent(event, 'destination');
  await source.call({ do: 'boot' });
  await sleep(scale.runMs);
  const address = await destination.call<string>({ do: 'receive', mode, sabotage, interruption: undefined });
  using way = await wayTo(address, scale.linkBytesPerSecond);
  const move = await source.call<Move>({
    do: 'leave',
    to: way.to,
    mode,
    sabotage,
    interruption: undefined,
    freshDestination: true,
  });
  const committed = move.outcome === 'committed';
  const arrival = committed ? await destination.call<Arrival>({ do: 'received' }) : {};
  const owner = committed ? destination : source;
  // By now the destination's guest runs: who comes after it is the one too many.
  if (sabotage === 'two-owners') await source.call({ do: 'haunt' });
  await sleep(scale.runMs);
  // A drain makes the guest forget its largest gap.
  const { heartbeatGapMs } = await owner.call<GuestReport>({ do: 'guest' });
  await owner.call({ do: 'drain' });
  const guest = { ...(await owner.call<GuestReport>({ do: 'guest' })), heartbeatGapMs };
  // The source's last words too: whatever still ran there is in its log by then.
  await Promise.all([source.call({ do: 'close' }), destination.call({ do: 'close' })]);
  const finding = await stage.witness.finish();
  const wireBytes = way.bytes || move.bytes.wire;
  return lineOf({
    kind,
    mode,
    scale,
    sabotage,
    move,
    arrival,
    guest,
    finding,
    committed: committed ? 1 : 0,
    wireBytes,
  });
}
