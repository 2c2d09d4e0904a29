/**
 * One host: a VMM's process with an embedded NVMe subsystem, and one machine at a time: the guest runs here, waits to arrive, or has left. It does
 * what the demo asks by IPC.
 */
import { join } from 'node:path';
import { GuestMemory, Journal, type ControlledFunction } from 'towline';
import { embedded, type EmbeddedSubsystem } from 'towline/rehearsal';
import { serve } from '../../shared/host-process.js';
import { Machine, showFunction, type MachineOptions } from '../src/machine.js';
import { ramRanges } from '../src/ram.js';
import { warmUp } from '../src/warm-up.js';
import { arrive, arriveFromFile, arriveHere, type Waiting } from './arrive.js';
import { guestReport } from './guest-report.js';
import { leave } from './leave.js';
import { LOG_FD, MEMORY_FD, type Arrival, type HostEvent, type HostRequest } from './protocol.js';

const NSID = 1;
const SAMPLE_MS = 25;

class Host {
  #opened:
    | { options: Extract<HostRequest, { do: 'open' }>; subsystem: EmbeddedSubsystem; journal: Journal }
    | undefined;
  #machine: Machine | undefined;
  #fn: ControlledFunction | undefined;
  #arrival: (() => Promise<Arrival>) | undefined;
  #sampling: NodeJS.Timeout | undefined;
  #made = 0;

  async answer(request: HostRequest): Promise<unknown> {
    switch (request.do) {
      case 'open':
        return this.#open(request);
      case 'boot':
        return this.#boot();
      case 'receive':
        return this.#receive(request);
      case 'received':
        return this.#arrived();
      case 'leave':
        return this.#leave(request);
      case 'haunt':
        return this.#running.vm.run();
      case 'guest':
        return guestReport(this.#running);
      case 'drain':
        return this.#drain();
      case 'close':
        return this.#close();
    }
  }

  get #now() {
    if (!this.#opened) throw new Error('the host is not open');
    return this.#opened;
  }

  get #running(): Machine {
    if (!this.#machine) throw new Error('there is no machine here');
    return this.#machine;
  }

  async #open(options: Extract<HostRequest, { do: 'open' }>): Promise<void> {
    const sizeBytes = BigInt(options.scale.namespaceMiB) << 20n;
    const subsystem = await embedded.open({ namespaces: [{ ...options.namespace, sizeBytes, shared: true }] });
    const journal = new Journal(join(options.directory, `journal-${options.hostTag}`));
    // Of a VMM that has just begun the first stop would be longer than all others.
    await warmUp(LOG_FD);
    this.#opened = { options, subsystem, journal };
  }

  /** A function of a machine that is to be, and what the machine is to be. */
  async #prepare(): Promise<{ fn: ControlledFunction; options: MachineOptions }> {
    await this.#discard();
    const { options, subsystem } = this.#now;
    const { kind, uuid, hostTag, directory, scale } = options;
    this.#made += 1;
    const machine: MachineOptions = {
      vcpus: scale.vcpus,
      dirtyRingEntries: scale.dirtyRingEntries,
      doorbells: scale.doorbells,
      kind,
      uuid,
      nsid: NSID,
      socketPath: join(directory, `nvme-${hostTag}-${this.#made}`),
      logFd: LOG_FD,
      hostTag,
    };
    this.#fn = await showFunction(subsystem, machine);
    return { fn: this.#fn, options: machine };
  }

  /** A machine with memory of its own. */
  async #make(): Promise<Machine> {
    const { fn, options } = await this.#prepare();
    const memory = new GuestMemory(ramRanges(MEMORY_FD, BigInt(this.#now.options.scale.memoryMiB) << 20n));
    this.#machine = await Machine.make(fn, memory, options);
    return this.#machine;
  }

  async #boot(): Promise<void> {
    const { scale } = this.#now.options;
    const machine = await this.#make();
    await machine.boot({ units: (scale.namespaceMiB << 20) / 4096, seed: 1n }, scale.load);
    this.#sample();
  }

  async #receive(request: Extract<HostRequest, { do: 'receive' }>): Promise<string> {
    const { address, arrival } = await this.#arrive(request);
    let ended: Promise<Arrival> | undefined;
    this.#arrival = () =>
      (ended ??= arrival().then((how) => {
        if (how.ranAtNs !== undefined) this.#sample();
        return how;
      }));
    // Whoever comes need not be asked for; but for a file, which is not there yet.
    if (request.mode !== 'checkpoint') void this.#arrival();
    return address;
  }

  #arrived(): Promise<Arrival> {
    if (!this.#arrival) throw new Error('nobody was waited for');
    return this.#arrival();
  }

  async #arrive(request: Extract<HostRequest, { do: 'receive' }>): Promise<Waiting> {
    const { journal, options } = this.#now;
    if (request.mode === 'checkpoint') {
      const machine = await this.#make();
      const path = join(options.directory, `checkpoint-${options.hostTag}-${this.#made}`);
      return arriveFromFile(machine, journal, path, () => side.hold());
    }
    if (request.mode !== 'same-host') return arrive(await this.#make(), journal, request);
    const prepared = await this.#prepare();
    const path = join(options.directory, `handoff-${options.hostTag}-${this.#made}`);
    return arriveHere(prepared.fn, journal, path, request, async (memory) => {
      this.#machine = await Machine.make(prepared.fn, memory, prepared.options);
      return this.#machine;
    });
  }

  #leave(request: Extract<HostRequest, { do: 'leave' }>): Promise<unknown> {
    const { journal, options, subsystem } = this.#now;
    const machine = this.#running;
    return leave({
      machine,
      journal,
      scale: options.scale,
      request,
      event: (event) => side.event(event),
      limit: (operationsPerSecond) =>
        subsystem.controlling.rateLimit(machine.fn, operationsPerSecond === null ? null : { operationsPerSecond }),
      hold: () => side.hold(),
    });
  }

  /** For the picture; a guest that stands still is seen, too. */
  #sample(): void {
    clearInterval(this.#sampling);
    this.#sampling = setInterval(() => {
      if (!this.#machine?.vm.running) return;
      const { heartbeats, pagesWritten, ios } = guestReport(this.#machine);
      side.event({ type: 'sample', atMs: Number(process.hrtime.bigint()) / 1e6, heartbeats, pagesWritten, ios });
    }, SAMPLE_MS);
  }

  async #drain(): Promise<{ pending: number }> {
    const { pending } = await this.#running.vm.drain(10_000);
    return { pending };
  }

  async #discard(): Promise<void> {
    const machine = this.#machine;
    this.#machine = undefined;
    const fn = this.#fn;
    this.#fn = undefined;
    clearInterval(this.#sampling);
    await machine?.close();
    await fn?.release();
  }

  async #close(): Promise<void> {
    await this.#discard();
    const opened = this.#opened;
    this.#opened = undefined;
    await opened?.subsystem.close();
    opened?.journal.close();
  }
}

const host = new Host();
const side = serve<HostRequest, HostEvent>((request) => host.answer(request));
