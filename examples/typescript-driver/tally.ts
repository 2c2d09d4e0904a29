/**
 * A made-up device: an adding machine. It adds what it is told to a total, and writes each new total to a slot in guest memory. A real
 * device would be reached through registers or ioctls; what follows is all that a driver of it needs to know.
 */
import type { GuestMemory } from 'towline';

/** Slots of 8 bytes at the beginning of guest memory. */
export const SLOTS = 1024n;

export class Tally {
  total = 0n;
  /** How often it added. The next total goes to slot `count % SLOTS`. */
  count = 0n;
  /** A stopped device neither adds nor writes. */
  running = true;
  /** Where its DMA goes. */
  memory: GuestMemory | undefined;
  /** Hears of each write of the device to guest memory, after it was made. */
  onWrite: (gpa: bigint, lengthBytes: number) => void = () => undefined;

  add(amount: bigint): void {
    if (!this.running) throw new Error('the device is stopped');
    this.total = BigInt.asUintN(64, this.total + amount);
    const slot = new DataView(new ArrayBuffer(8));
    slot.setBigUint64(0, this.total, true);
    const gpa = (this.count % SLOTS) * 8n;
    this.count += 1n;
    this.memory?.write(gpa, new Uint8Array(slot.buffer));
    this.onWrite(gpa, 8);
  }

  reset(): void {
    this.total = 0n;
    this.count = 0n;
    this.running = true;
  }
}
