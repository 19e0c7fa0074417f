/** Statistics of a VM. The order is the layout of the data block, and only grows at its end: readers keep offsets over a move. */
import { counter, instant, peak } from "./row.ts";

const SHADOW_PAGING = "belongs to shadow paging; guests here are mapped by EPT only";

export const VM_ROWS = [
  counter("remote_tlb_flush", "INVEPT done for the VM on a CPU: after mappings were taken away or write-protected"),
  counter("remote_tlb_flush_requests", "times that this was asked for; a VM has one CPU, so each is done at once"),
  counter("mmu_shadow_zapped", "second-level tables given back while the VM lives", {
    neverInV1: "its tables stay until the VM ends",
  }),
  counter("mmu_pte_write", "guest writes to shadowed page tables", { never: SHADOW_PAGING }),
  counter("mmu_pde_zapped", "shadowed directory entries zapped", { never: SHADOW_PAGING }),
  counter("mmu_flooded", "shadow pages zapped for many writes", { never: SHADOW_PAGING }),
  counter("mmu_recycled", "shadow pages recycled under memory pressure", { never: SHADOW_PAGING }),
  counter("mmu_cache_miss", "second-level tables allocated"),
  instant("mmu_unsync", "shadow pages out of step with the guest's", { never: SHADOW_PAGING }),
  instant("pages_4k", "4 KiB pages mapped now"),
  instant("pages_2m", "2 MiB pages mapped now", { neverInV1: "it maps 4 KiB pages only" }),
  instant("pages_1g", "1 GiB pages mapped now", { never: "no version maps pages of that size" }),
  instant("nx_lpage_splits", "large pages split so that they cannot be executed", {
    never: "works around an erratum (iTLB multihit) that this hardware does not have",
  }),
  peak("max_mmu_rmap_size", "most mappings of one guest frame, by its reverse map", {
    neverInV2: "it has no reverse maps",
  }),
  peak("max_mmu_page_hash_collisions", "most collisions in the hash of shadow pages", { never: SHADOW_PAGING }),
  instant("mmu_table_pages", "pages that second-level tables take now", { source: "mkvm" }),
] as const;
