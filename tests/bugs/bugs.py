"""Deliberate bugs: what each does, and the edits by which a copy of the sources gets it as a switch.

A third part names a test that finds the bug where the simulator would take too long to come across it.

An edit is (file under src, text that is there once, text in its place); BUG stands for the condition "this bug is on".
"""

KEEPER = "engine/keeper/mod.rs"
COMMANDS = "engine/keeper/commands.rs"
SETTLE = "engine/keeper/settle.rs"
SPACE = "engine/keeper/space.rs"
STOP = "engine/keeper/stop.rs"
LANE = "engine/lane.rs"
COMMIT = "metadata/commit.rs"
VOLUMES = "metadata/volumes.rs"
DATA_MAP = "metadata/data_map.rs"
META_MAP = "metadata/meta_map.rs"
METADATA = "metadata/mod.rs"
MAP_TABLE = "engine/map_table.rs"
PARTIALS = "engine/partials.rs"
PARTIAL_LANE = "engine/lane/partial.rs"
PARTIAL_KEEPER = "engine/keeper/partial.rs"
PARTIAL_METADATA = "metadata/partial.rs"
JOURNAL = "journal/mod.rs"
REPLAY = "journal/replay.rs"
AHEAD = "engine/keeper/ahead.rs"
FREED = "engine/keeper/freed.rs"
BUDGET = "metadata/budget.rs"
JOURNAL_KEEPER = "engine/keeper/journal.rs"
FLUSH = "engine/keeper/flush.rs"
HIGHEST = "metadata/highest.rs"

BUGS = {
    "epochs-not-waited-for": (
        "what was retired is reused while lanes still look at it",
        [("engine/epochs.rs", "        fence(SeqCst);\n        self.oldest.iter()",
          "        fence(SeqCst);\n        if BUG { return true; }\n        self.oldest.iter()")],
    ),
    "published-before-written": (
        "a fill is mapped when its block is handed out, not when its bytes are there",
        [(KEEPER, "        out.reply(from, reply);",
          """        if BUG && matches!(reply, Reply::Fill { .. }) {
            let mapping = self.metadata.map(id, block, target);
            self.volumes[&id].table.set(block, Some(mapping));
        }
        out.reply(from, reply);"""),
         (KEEPER, "            None => (self.metadata.map(id, block, target), None),",
          """            None if BUG && self.filling[&(id, block)].base.is_none() => {
                (Mapping { block: target, time: self.metadata.time() }, None)
            }
            None => (self.metadata.map(id, block, target), None),""")],
    ),
    "reused-at-once": (
        "blocks that a commit freed go to the allocator before lanes have passed",
        [(SETTLE, "                    self.limbo.push_back((self.epochs.retire(), freed));",
          """                    if BUG { for range in &freed { self.metadata.make_reusable(range.clone()); } }
                    self.limbo.push_back((self.epochs.retire(), freed));""")],
    ),
    "discarded-at-once": (
        "freed blocks are passed down to the data disk while lanes still read them",
        [(SETTLE, "                    self.limbo.push_back((self.epochs.retire(), freed));",
          """                    if BUG {
                        let bytes = self.block_size().bytes();
                        for range in &freed {
                            let _ = self.data.discard(range.start * bytes, (range.end - range.start) * bytes);
                        }
                    }
                    self.limbo.push_back((self.epochs.retire(), freed));""")],
    ),
    "reusable-before-durable": (
        "a data block is handed out again in the transaction that freed it",
        [(DATA_MAP, "        let unavailable = self.reserved.len()", "        if BUG { self.apply(space)?; }\n        let unavailable = self.reserved.len()"),
         (DATA_MAP, "        if self.committed_free <= unavailable {", "        if !BUG && self.committed_free <= unavailable {"),
         (DATA_MAP, "        self.committed[bitmap].free.get() > sets", "        if BUG { return true; }\n        self.committed[bitmap].free.get() > sets"),
         (DATA_MAP, "space.cache.get(&space.disk, self.committed[bitmap].bitmap(), BlockKind::Bitmap)?;\n        let mut window",
          "space.cache.get(&space.disk, if BUG { self.index[bitmap].bitmap() } else { self.committed[bitmap].bitmap() }, BlockKind::Bitmap)?;\n        let mut window")],
    ),
    "not-frozen": (
        "a snapshot is taken while its origin changes",
        [(COMMANDS, "            self.volumes[&volume].set_frozen(true);", "            self.volumes[&volume].set_frozen(!BUG);")],
    ),
    "half-frozen": (
        "of several volumes at one moment only the first is still",
        [(COMMANDS, "        for volume in what.volumes() {", "        for volume in what.volumes().into_iter().take(if BUG { 1 } else { usize::MAX }) {")],
    ),
    "not-drained": (
        "a snapshot does not wait for the writes that began before it",
        [(COMMANDS, "while self.freezes.front().is_some_and(|freeze| self", "while self.freezes.front().is_some_and(|freeze| BUG || self")],
    ),
    "only-writes-frozen": (
        "discards and zeroes go on while a snapshot is taken",
        [(LANE, "            Changes::Frozen if changes => {",
          "            Changes::Frozen if changes && (!BUG || matches!(request.kind, Kind::Write { .. })) => {")],
    ),
    "flush-without-commit": (
        "a FLUSH flushes data and forgets the mappings",
        [(KEEPER, "            Ask::Flush => self.flushes.push(from),",
          """            Ask::Flush if BUG => {
                let _ = self.flush_data();
                out.reply(from, Reply::Done)
            }
            Ask::Flush => self.flushes.push(from),""")],
    ),
    "data-not-flushed": (
        "a commit does not flush the data that its mappings name",
        [(SETTLE, "        let flushed = self.flush_data().map_err",
          "        let flushed = (if BUG { crate::disk::flush_data(&crate::disk::MemoryDisk::zeroed(4096)) } else { self.flush_data() }).map_err")],
    ),
    "metadata-not-flushed": (
        "the superblock is written before the blocks it leads to are durable",
        [(COMMIT, "            self.final_step(|this| flush(&this.space.disk))?;", "            if !BUG { self.final_step(|this| flush(&this.space.disk))?; }")],
    ),
    "superblock-first": (
        "the superblock's roots are written before the blocks they lead to",
        [(COMMIT, "            self.space.cache.write_dirty(&self.space.disk)?;",
          """            if BUG {
                superblock.time = self.time;
                superblock.transaction_id = self.transaction_id;
                self.final_step(|this| write_superblock(&this.space.disk, &superblock.encode(MetaBlock::SUPERBLOCK)))?;
            }
            self.space.cache.write_dirty(&self.space.disk)?;""")],
    ),
    "superblock-not-flushed": (
        "a commit is answered before its superblock is durable",
        [("metadata/open.rs", "&error))?;\n    flush(disk)\n}", "&error))?;\n    if BUG { return Ok(()); }\n    flush(disk)\n}")],
    ),
    "metadata-block-reused": (
        "a metadata block of the last commit is overwritten by the transaction that freed it",
        [(META_MAP, "            if self.committed[word] & bit == 0 && !self", "            if (self.committed[word] & bit == 0 || BUG) && !self")],
    ),
    "discard-overtakes-fill": (
        "a discard does not wait for the fill of a block in its range",
        [(KEEPER, "        let end = match self.filling.range_mut(blocks).next() {",
          "        let end = match self.filling.range_mut(blocks).next().filter(|_| !BUG) {")],
    ),
    "copied-again": (
        "a block that somebody else has just unshared is copied from the old one once more",
        [(KEEPER, "        if current.is_some_and(|mapping| !volume.is_shared(mapping)) {",
          "        if current.is_some_and(|mapping| !volume.is_shared(mapping)) && !BUG {"),
         (KEEPER, "Lookup::Mapped(mapping) if !volume.is_shared(mapping)) {",
          "Lookup::Mapped(mapping) if !volume.is_shared(mapping) && !BUG) {")],
    ),
    "space-ahead-goes-back-with-blocks": (
        "what was had ahead of writes is given back as a whole, blocks that hold something among it",
        [(AHEAD, "            match self.metadata.free_blocks_in(blocks) {",
          "            let whole = blocks.clone();\n"
          "            match self.metadata.free_blocks_in(blocks).map(|free| if BUG { vec![whole] } else { free }) {")],
    ),
    "origin-not-marked": (
        "after a snapshot the origin's blocks count as its own",
        [(COMMANDS, "            origin.set_snapshotted(time);", "            if !BUG { origin.set_snapshotted(time); }")],
    ),
    "unmapped-only-on-disk": (
        "a discard leaves the map in memory as it was",
        [(KEEPER, "            Ok(Progress::Done) => {\n                volume.table.clear(left.clone());",
          "            Ok(Progress::Done) => {\n                if !BUG { volume.table.clear(left.clone()); }")],
    ),
    "space-never-comes-back": (
        "freed blocks do not get back to the allocator",
        [(FREED, "        self.metadata.make_reusable(blocks.clone());", "        if !BUG { self.metadata.make_reusable(blocks.clone()); }")],
    ),
    "handed-out-and-given-back": (
        "a freed block that has been handed out again still gives its space back",
        [(KEEPER, "self.freed.remove(target.0);", "!BUG && self.freed.remove(target.0);")],
    ),
    "abandoned-block-lost": (
        "the block of a failed fill is not given back",
        [(KEEPER, "                self.metadata.release_block(target);", "                if !BUG { self.metadata.release_block(target); }")],
    ),
    "waiting-in-an-epoch": (
        "who waits for space holds his epoch, and so holds up what would free some",
        [(LANE, "                self.leave_epoch(op);\n                let volume = self.volume_of(op).id();",
          "                if !BUG { self.leave_epoch(op); }\n                let volume = self.volume_of(op).id();")],
    ),
    "not-thawed": (
        "who waited for a snapshot is not told that it is over",
        [(COMMANDS, "                if *volume == id {\n                    out.reply", "                if *volume == id && !BUG {\n                    out.reply")],
    ),
    "fill-waiters-forgotten": (
        "who waited for another's fill is not told of its end",
        [(KEEPER, "        for waiting in filling.waiting_fills {\n", "        for waiting in filling.waiting_fills {\n            if BUG { break; }\n")],
    ),
    "space-waiters-forgotten": (
        "who waits for space is not told when there is some",
        [(SPACE, "        if self.space_waiters.is_empty() {\n            return;", "        if self.space_waiters.is_empty() || BUG {\n            return;")],
    ),
    "fua-ignored": (
        "a forced write is answered before it is durable",
        [(LANE, "        if running.result.is_ok() && takes_force", "        if running.result.is_ok() && !BUG && takes_force")],
    ),
    "flush-answered-twice-never": (
        "of several flushes that one commit serves, one gets no answer",
        [(SETTLE, "                out.replies.extend(self.take_flushers().map(|asker| (asker, Reply::Done)));\n                out.answers", "                if BUG && self.flushes.len() > 1 { self.flushes.pop(); }\n                out.replies.extend(self.take_flushers().map(|asker| (asker, Reply::Done)));\n                out.answers")],
    ),
    "snapshot-before-pending": (
        "mappings that wait in memory are not in a snapshot",
        [(VOLUMES, "        self.require_clock()?;\n        self.apply_pending_of(origin)?;\n        self.afford",
          "        self.require_clock()?;\n        if !BUG { self.apply_pending_of(origin)?; }\n        self.afford")],
    ),
    "deleted-tree-leaks": (
        "a deleted volume's tree keeps its references",
        [(VOLUMES, "        self.space.drop_tree::<MappingRecord>(root, Span::ALL, 0)?;", "        if !BUG { self.space.drop_tree::<MappingRecord>(root, Span::ALL, 0)?; }")],
    ),
    "fresh-blocks-not-zeroed": (
        "the rest of a fresh block shows what was there before",
        [(KEEPER, "            None if self.zero_new_blocks => FillSource::Zeros,", "            None if self.zero_new_blocks && !BUG => FillSource::Zeros,")],
    ),
    "transaction-id-left-behind": (
        "a snapshot does not step the transaction id",
        [(COMMANDS, "        self.change(out, |metadata| metadata.set_transaction_id(freeze.step.from, freeze.step.to))\n    }",
          "        if BUG { return Ok(()); }\n        self.change(out, |metadata| metadata.set_transaction_id(freeze.step.from, freeze.step.to))\n    }")],
    ),
    "exclusive-too-early": (
        "a block counts as exclusive before the end of its sharing is durable",
        [(METADATA, "        if is_unsure || self.pending", "        if (is_unsure && !BUG) || self.pending")],
    ),
    "exclusive-by-the-leaf": (
        "a block counts as exclusive although the nodes that lead to it are shared",
        [("metadata/tree/mod.rs", "references.metadata.count(block.0) == 1)", "BUG || references.metadata.count(block.0) == 1)")],
    ),
    "rolled-back-on-disk-only": (
        "after a roll-back the map in memory is the old one",
        [(COMMANDS, "        for page in volume.table.loaded_pages(0..u64::MAX) {", "        for page in volume.table.loaded_pages(0..if BUG { 0 } else { u64::MAX }) {")],
    ),
    "rolled-back-unmarked": (
        "after a roll-back the snapshot's blocks count as its own",
        [(COMMANDS, "        self.volumes[&to].set_snapshotted(time);", "        if !BUG { self.volumes[&to].set_snapshotted(time); }")],
    ),
    "released-without-counts": (
        "letting a metadata snapshot go leaves its counts behind when nothing else has changed",
        [(COMMIT, "        let counts_changed = !self", "        let counts_changed = !BUG && !self")],
    ),
    "overwritten-under-a-reader": (
        "a block that was shared is overwritten while a read that began for another volume is under way",
        [(KEEPER, "            && self.holders_lost.is_none()\n", "            && (BUG || self.holders_lost.is_none())\n")],
        "engine::keeper::tests::a_block_is_not_overwritten_under_who_began",
    ),
    "copied-while-overwritten": (
        "a block that one write was told to overwrite in place is copied for another at the same time",
        [(KEEPER, "        if matches!(volume.table.get_kept(block), Lookup::Mapped(mapping) if", "        if !BUG && matches!(volume.table.get_kept(block), Lookup::Mapped(mapping) if")],
        "engine::keeper::tests::a_block_that_is_somebody_s_alone",
    ),
    "origin-not-copied": (
        "the first write to a block on an external origin fills the rest with zeros",
        [(KEEPER, "            None if block.0.saturating_mul(block_bytes) < volume.origin_bytes() =>",
          "            None if !BUG && block.0.saturating_mul(block_bytes) < volume.origin_bytes() =>")],
    ),
    "origin-s-tail-not-zeroed": (
        "the rest of a block past the end of an external origin is not zeroed",
        [(LANE, "                if origin_bytes < length_bytes {\n", "                if origin_bytes < length_bytes && !BUG {\n")],
    ),
    "origin-read-past-its-end": (
        "a read across the end of an external origin leaves the rest of its buffer as it was",
        [(LANE, "        if origin_bytes < piece.length_bytes {\n", "        if origin_bytes < piece.length_bytes && (!BUG || origin_bytes == 0) {\n")],
    ),
    "zeroes-show-the-origin": (
        "zeros over an external origin are made by unmapping",
        [(LANE, "                let begin = whole.start.max(self", "                let begin = whole.start.max(if BUG { 0 } else { 1 } * self")],
    ),
    "zeroes-trust-the-hole": (
        "zeros over a part of a block that is not mapped are taken for done although an external origin shows there",
        [(LANE, "            && self.volume_byte(piece) >= volume.origin_bytes();", "            && (BUG || self.volume_byte(piece) >= volume.origin_bytes());")],
    ),
    "snapshot-without-origin": (
        "a snapshot loses the external origin of its volume",
        [(COMMANDS, "origin.size_bytes(), time, origin.behind().clone());", "origin.size_bytes(), time, if BUG { Behind::Zeros } else { origin.behind().clone() });")],
    ),
    "origin-chunk-misplaced": (
        "a fill reads the external origin from the place of the request, not of the block",
        [(LANE, "                let begin = piece.block.0 * self.block_size.bytes() + fill.written_bytes;",
          "                let begin = piece.block.0 * self.block_size.bytes() + fill.written_bytes + if BUG { 512 * u64::from(piece.at_bytes > 0) } else { 0 };")],
    ),
    "own-though-the-nodes-are-shared": (
        "blocks are counted as a volume's own although the nodes that lead to them are shared",
        [("metadata/sharing.rs", "|| walk.is_shared(block) {", "|| (walk.is_shared(block) && !BUG) {")],
    ),
    "count-of-another-time": (
        "a count passes for one of this moment although commits have followed",
        [("engine/keeper/sharing.rs", "known.commit == self.commits)", "(BUG || known.commit == self.commits))")],
    ),
    "needs-check-not-marked": (
        "a failed commit leaves no mark by which a checker is asked for",
        [(STOP, "            Failure::Metadata => self.fall_back(true),", "            Failure::Metadata => self.fall_back(!BUG),")],
    ),
    "acknowledged-is-undone": (
        "a pool that becomes read-only shows its clients the last commit",
        [(STOP, "        self.volumes.retain(|id, _| there.contains(id));",
          """        self.volumes.retain(|id, _| there.contains(id));
        if BUG { self.uncommitted.rolled_back = there.iter().copied().filter(|id| self.volumes.contains_key(id)).collect(); }""")],
    ),
    "written-though-read-only": (
        "lanes go on writing in place when the pool has become read-only",
        [(STOP, "        self.volumes.values().for_each(|volume| volume.refuse_changes());\n        self.partial.settler.refuse_changes();\n        self.stopped",
          "        self.volumes.values().for_each(|volume| if !BUG { volume.refuse_changes() });\n        self.partial.settler.refuse_changes();\n        self.stopped")],
    ),
    "flushed-though-read-only": (
        "a flush of a pool that has become read-only is answered as done",
        [(STOP, "            (Some(Stop::OpenedReadOnly(_)), Ask::Flush) => out.reply(from, Reply::Done),",
          """            (Some(Stop::OpenedReadOnly(_)), Ask::Flush) => out.reply(from, Reply::Done),
            (Some(Stop::ReadOnly(_)), Ask::Flush) if BUG => out.reply(from, Reply::Done),""")],
    ),
    "deleted-stays-away": (
        "a volume whose deletion was taken back is not there until the pool is opened again",
        [(STOP, "            self.volumes.insert(volume.id(), volume);", "            if !BUG { self.volumes.insert(volume.id(), volume); }")],
    ),
    "made-and-undone-stays": (
        "a volume whose making was taken back is still shown",
        [(STOP, "        self.volumes.retain(|id, _| there.contains(id));", "        if !BUG { self.volumes.retain(|id, _| there.contains(id)); }"),
         # Shown, not stumbled over.
         (COMMANDS, "            let details = self.metadata.details(*id)?.expect(",
          """            if BUG && self.metadata.details(*id)?.is_none() {
                let time = self.metadata.time();
                let transaction_id = self.metadata.transaction_id();
                infos.push(VolumeInfo {
                    id: *id,
                    size_bytes: volume.size_bytes(),
                    details: crate::metadata::VolumeDetails { mapped_blocks: 0, transaction_id, creation_time: time, snapshotted_time: time },
                    highest_mapped: None,
                    openers: 0,
                    lacks_origin: false,
                    when_full: None,
                    queue_expired: false,
                    waiting_for_space: 0,
                    sharing: None,
                });
                continue;
            }
            let details = self.metadata.details(*id)?.expect(""")],
    ),
    "failed-commit-is-kept": (
        "after a failed commit its state in memory is gone on with",
        [(METADATA, "            self.mark_as_unchecked()?;\n        }\n", "            self.mark_as_unchecked()?;\n        }\n        if BUG {\n            self.state = State::Sound;\n            return Ok(());\n        }\n")],
    ),
    "left-and-writes-on": (
        "what a client that has left was waiting for space or a snapshot to write is written when they come",
        [(LANE, "Reply::NoSpaceNow) if self.has_hung_up && self.changes(op) => {", "Reply::NoSpaceNow) if !BUG && self.has_hung_up && self.changes(op) => {")],
    ),
    "left-and-waits-on": (
        "who has left keeps his place among those who wait for space or a snapshot",
        [(SPACE, "        let thaws = self.thaws.len();\n", "        if BUG { return; }\n        let thaws = self.thaws.len();\n")],
        "engine::keeper::tests::who_gives_up_waits_no_longer",
    ),
    "deletion-not-gone-on-with": (
        "of a deletion that takes several steps only the first is done",
        [(COMMANDS, "                self.deletions.push_back(id);", "                if !BUG { self.deletions.push_back(id); }")],
    ),
    "part-not-counted": (
        "a step of a discard or deletion leaves the number of a volume's blocks as it was",
        [(VOLUMES, "        self.store_details(volume, &details)?;\n        self.shape.mappings = self.shape.mappings.saturating_sub(part.mappings);",
          "        if !BUG { self.store_details(volume, &details)?; }\n        self.shape.mappings = self.shape.mappings.saturating_sub(part.mappings);")],
    ),
    "discard-ends-early": (
        "a discard that takes several steps is done with the first",
        [(KEEPER, "                unmap.left.start = next;\n", "                unmap.left.start = if BUG { unmap.left.end } else { next };\n")],
    ),
    "step-only-on-disk": (
        "a step of a discard, but the last, leaves the map in memory as it was",
        [(KEEPER, "                volume.table.clear(left.start..next);", "                if !BUG { volume.table.clear(left.start..next); }")],
    ),
    "shrunk-with-its-data": (
        "a volume is made smaller though there is data behind its new end, which shows when it is made larger again",
        [(COMMANDS, "            if mapped > size_bytes.next_multiple_of(block_bytes) {", "            if !BUG && mapped > size_bytes.next_multiple_of(block_bytes) {")],
    ),
    "grown-not-committed": (
        "a pool's growth is answered before it is durable",
        [(COMMANDS, "            Command::Grow { data_bytes, metadata_bytes } => self.grow(data_bytes, metadata_bytes, out),",
          """            Command::Grow { data_bytes, metadata_bytes } if BUG => {
                let grown = self.grow(data_bytes, metadata_bytes, out);
                return out.answers.push((number, grown));
            }
            Command::Grow { data_bytes, metadata_bytes } => self.grow(data_bytes, metadata_bytes, out),""")],
    ),
    "held-not-committed": (
        "the metadata snapshot is answered before it is durable",
        [(COMMANDS, "            Command::HoldMetadata => self.hold_metadata(out),",
          """            Command::HoldMetadata if BUG => {
                let held = self.hold_metadata(out);
                return out.answers.push((number, held));
            }
            Command::HoldMetadata => self.hold_metadata(out),""")],
    ),
    "flush-tried-again": (
        "a flush that has failed is tried once more, and believed",
        [("disk/mod.rs", "    data.flush().map(DataFlushed)", "    data.flush().or_else(|error| if BUG { data.flush() } else { Err(error) }).map(DataFlushed)")],
    ),
    "volumes-have-no-policy": (
        "a volume's own policy for a full pool is not asked for",
        [(SPACE, "        self.volumes_when_full.get(&volume)", "        if BUG { return self.when_full; }\n        self.volumes_when_full.get(&volume)")],
        "engine::keeper::stop_tests::volumes_wait_for_space_by_policies_of_their_own",
    ),
    "page-forgotten-too-early": (
        "a page of the map is forgotten while lanes may be writing blocks that only it knows to be exclusive",
        [("engine/keeper/map_memory.rs", "take_if(|leaving| self.epochs", "take_if(|leaving| BUG || self.epochs")],
        "engine::keeper::tests::what_only_memory_knows_is_kept",
    ),
    "leaving-page-overlooked": (
        "who is about to copy a block does not look into the page that is leaving, which knows it to be exclusive",
        [(KEEPER, "volume.table.get_kept(block)", "if BUG { volume.table.get(block) } else { volume.table.get_kept(block) }")],
        "engine::keeper::tests::what_only_memory_knows_is_kept",
    ),
    "discarded-behind-its-end": (
        "a discard up to the end of a volume that ended inside a block unmaps what was written there since it is larger",
        [(KEEPER, "        if volume.size_bytes() > unmap.end_bytes {", "        if volume.size_bytes() > unmap.end_bytes && !BUG {")],
    ),
    "commit-s-cure-is-a-lack": (
        "metadata space that the next commit frees counts as run out",
        [(KEEPER, "                self.starved = Some(error.kind());\n", "                self.starved = Some(error.kind());\n                if BUG { self.note_lack(error.kind()); }\n")],
        "engine::keeper::tests::metadata_that_the_next_commit",
    ),
    "leaving-page-falls-behind": (
        "a page that is leaving misses what the keeper changes, and is brought back",
        [(MAP_TABLE, "            PageState::Here(slot) | PageState::Leaving(slot) => slot,",
          "            PageState::Leaving(_) if BUG => return,\n            PageState::Here(slot) | PageState::Leaving(slot) => slot,")],
    ),
    "page-leaves-as-a-hole": (
        "a page that was a hole once is taken for one when it has left",
        [(MAP_TABLE, "            directory.holes.clear(page); //", "            if !BUG { directory.holes.clear(page); } //")],
    ),
    "units-there-before-written": (
        "units of a partial block count as there when their write begins",
        [(PARTIAL_LANE, "                // A unit at either end that was not there",
          """                if BUG { self.volume_of(op).partials().put(block, units); }
                // A unit at either end that was not there""")],
    ),
    "units-not-counted-as-changes": (
        "a flush forgets the units that were added to partial blocks when nothing else has changed",
        [(SETTLE, "        self.metadata.put_units(units)?;\n",
          "        if BUG && !self.metadata.is_dirty() { return Ok((Freed::new(), false)); }\n        self.metadata.put_units(units)?;\n")],
    ),
    "units-not-claimed": (
        "two writers of one unit that is not there both write it as a whole",
        [(PARTIALS, "            if taken != 0 {\n                // They may", "            if taken != 0 && !BUG {\n                // They may")],
    ),
    "partial-entry-forgotten-at-once": (
        "what is known of a partial block is forgotten with the commit that frees it, while lanes still write it",
        [(SETTLE, "self.partial.table.freed(range.clone()));",
          "if BUG { self.partial.table.remove_range(range.clone()) } else { self.partial.table.freed(range.clone()) });")],
    ),
    "freed-blocks-are-settled": (
        "the settler is given a block that a commit has freed",
        [(PARTIALS, "            if let Some(entry) = self.entry(block) {\n                entry.block.store",
          "            if let Some(entry) = self.entry(block).filter(|_| !BUG) {\n                entry.block.store")],
    ),
    "base-not-held": (
        "a partial block holds no reference to its base",
        [(PARTIAL_METADATA, "            partial.record().retain(&mut self.space.references, root)?;",
          "            if !BUG { partial.record().retain(&mut self.space.references, root)?; }"),
         (PARTIAL_METADATA, "        self.base().block().map_or(Ok(()), |base| references.data.decrement(base, leaf))",
          "        self.base().block().filter(|_| !BUG).map_or(Ok(()), |base| references.data.decrement(base, leaf))")],
    ),
    "partial-base": (
        "a partial block becomes the base of another",
        [(PARTIAL_KEEPER, "            FillSource::Block(block) if !self.table.knows(block) =>", "            FillSource::Block(block) if BUG || !self.table.knows(block) =>")],
    ),
    "settler-overwrites": (
        "the settler fills units that a client is writing",
        [(PARTIAL_LANE, "        let missing = self.volume_of(op).partials().unclaimed(block);",
          "        let missing = if BUG { self.block_size.all_units() & !seen.partial.units } else { self.volume_of(op).partials().unclaimed(block) };"),
         (PARTIAL_LANE, "        match self.volume_of(op).partials().claim(block, units) {\n            Claim::Won(won) if won == units => {",
          "        match if BUG { Claim::Won(units) } else { self.volume_of(op).partials().claim(block, units) } {\n            Claim::Won(won) if won == units => {")],
    ),
    "rest-of-a-unit-not-copied": (
        "a write to a part of a unit that is not there fills the rest of it with zeros",
        [(PARTIAL_LANE, "                    source: source_of(seen.partial.base),\n                    above: None,\n                    written_bytes: begin,\n                    end_bytes,\n                    ending: Ending::Put(units),\n                };\n                self.fill(op, piece,",
          "                    source: if BUG { FillSource::Zeros } else { source_of(seen.partial.base) },\n                    above: None,\n                    written_bytes: begin,\n                    end_bytes,\n                    ending: Ending::Put(units),\n                };\n                self.fill(op, piece,")],
    ),
    "rest-of-a-unit-not-written": (
        "the first write to a block writes what the client gave and no whole units",
        [(PARTIAL_LANE, "        let range = self.block_size.unit_range(piece.at_bytes..piece.end_bytes());",
          "        let range = if BUG { piece.at_bytes..piece.end_bytes() } else { self.block_size.unit_range(piece.at_bytes..piece.end_bytes()) };")],
    ),
    "whole-block-keeps-its-base": (
        "a block that has become whole does not let go of its base",
        [(PARTIAL_METADATA, "            this.remove_partials(&whole.map(",
          """            if BUG {
                let root = this.partials.root.expect("it has entries");
                for (block, _) in whole.clone() {
                    let record = this.space.lookup::<PartialRecord>(root, block.0)?.expect("an entry");
                    record.retain(&mut this.space.references, root)?;
                }
            }
            this.remove_partials(&whole.map(""")],
    ),
    "others-entries-go-along": (
        "the entries of blocks that are freed take along those of blocks that lie between them",
        [(PARTIAL_METADATA, "self.partials.blocks.next_after(pair[0]) == Some(pair[1])",
          "(BUG || self.partials.blocks.next_after(pair[0]) == Some(pair[1]))"),
         (PARTIAL_METADATA, "            if !records.iter().map(|(block, _)| block).eq(run) {\n",
          "            if !BUG && !records.iter().map(|(block, _)| block).eq(run) {\n")],
    ),
    "freed-block-stays-partial": (
        "a block that is freed keeps its entry among the partial ones",
        [(PARTIAL_METADATA, "            if gone.is_empty() {\n", "            if BUG || gone.is_empty() {\n")],
    ),
    "failed-write-keeps-its-claim": (
        "units that could not be written stay claimed",
        [(PARTIAL_LANE, "        self.volume_of(op).partials().give_back(fill.target, units);", "        if !BUG { self.volume_of(op).partials().give_back(fill.target, units); }")],
    ),
    "unit-waiters-forgotten": (
        "who waits for somebody else's unit is not told when it is there",
        [(PARTIAL_KEEPER, "            let is_claimed = table.is_claimed(*block, *units);", "            let is_claimed = BUG || table.is_claimed(*block, *units);")],
    ),
    "copied-as-if-whole": (
        "a fill takes a partial block for a whole one",
        [(LANE, "                    FillSource::Block(block) => self.look_closer(op, block),", "                    FillSource::Block(block) => self.look_closer(op, block).filter(|_| !BUG),")],
    ),
    "feature-outlives-its-tree": (
        "the superblock keeps the feature of partial blocks when there are none any more",
        [(COMMIT, "            superblock.set_partial_tree(self.partials.tree());", "            if !BUG || self.partials.root.is_some() { superblock.set_partial_tree(self.partials.tree()); }")],
    ),
    "sum-falls-behind": (
        "units come to a partial block, and the sum of all of them stays as it was",
        [(PARTIAL_METADATA, "                this.partials.count_in(block.0, new);", "                this.partials.count_in(block.0, if BUG { old } else { new });")],
    ),
    "freed-block-stays-in-the-sum": (
        "an entry of a partial block goes, and the sum of all of them stays as it was",
        [(PARTIAL_METADATA, "                self.partials.count_out(block, record);", "                if !BUG { self.partials.count_out(block, record); }")],
    ),
    "older-partial-blocks-are-believed": (
        "partial blocks that are not those of the last commit are opened, because a node of their tree was not written",
        [(PARTIAL_METADATA, "        if partials.sum != sum {", "        if !BUG && partials.sum != sum {")],
        "metadata::partial::tests::an_older_leaf_is_known_to_be_none_of_the_last_commit",
    ),
    "deletions-are-not-settled-for": (
        "partial blocks count as stuck while a deletion frees them",
        [(PARTIAL_KEEPER, "is_filling || self.gets_on_deleting() {", "is_filling || !BUG && self.gets_on_deleting() {")],
        "engine::keeper::tests::who_waits_for_all_to_be_settled_waits_for_deletions",
    ),
    "parts-past-the-origin-s-end": (
        "a read of a partial block across the end of its external origin leaves the rest of its buffer as it was",
        [(PARTIAL_LANE, "                    if origin_bytes < length_bytes {\n", "                    if origin_bytes < length_bytes && !BUG {\n")],
    ),
    "settled-as-if-zeros": (
        "a partial block on an external origin is settled with zeros",
        [(PARTIAL_LANE, "                    source: source_of(seen.partial.base),\n                    above: None,\n                    written_bytes: begin,\n                    end_bytes,\n                    ending: Ending::Put(units),\n                };\n                self.fill(op, place,",
          "                    source: match source_of(seen.partial.base) { FillSource::Origin if BUG => FillSource::Zeros, source => source },\n                    above: None,\n                    written_bytes: begin,\n                    end_bytes,\n                    ending: Ending::Put(units),\n                };\n                self.fill(op, place,")],
    ),
    "settled-from-another-place": (
        "a partial block is settled from the beginning of its external origin, wherever the block is",
        [(PARTIAL_LANE, "        Base::Origin(block) => block,", "        Base::Origin(block) => if BUG { VirtualBlock(0) } else { block },")],
    ),
    "settled-from-another-s-origin": (
        "a partial block is settled from the external origin of a volume that does not map it",
        [(PARTIAL_KEEPER, "                Ok(Some(mapping)) if mapping.block == block => {", "                Ok(found) if BUG || found.is_some_and(|mapping| mapping.block == block) => {")],
    ),
    "replayed-as-zeros": (
        "a replay takes an external origin as a base for zeros",
        [(REPLAY, "            let partial = partial.map(|(base, units)| Partial { base, units });",
          "            let partial = partial.map(|(base, units)| Partial { base: if BUG && base.block().is_none() { crate::metadata::Base::Zeros } else { base }, units });")],
    ),
    "mapping-not-recorded": (
        "a fill is published without a record in the journal",
        [(KEEPER, "        if !self.record(record, out) {", "        if !BUG && !self.record(record, out) {")],
    ),
    "unmapping-not-recorded": (
        "a discard leaves no record in the journal",
        [(KEEPER, "        if !gone.is_empty() && !self.record(", "        if !BUG && !gone.is_empty() && !self.record(")],
    ),
    "units-not-recorded": (
        "units come to a partial block without a record in the journal",
        [(JOURNAL_KEEPER, "        let recorded = self.append(JournalRecord::Units { block, units });",
          "        let recorded = if BUG { Ok(()) } else { self.append(JournalRecord::Units { block, units }) };")],
    ),
    "journal-without-data": (
        "a flush makes records durable, and not the data that they name",
        [(JOURNAL_KEEPER, "        let data_first = match self.flush_data() {",
          "        let data_first = match if BUG { crate::disk::flush_data(&crate::disk::MemoryDisk::zeroed(0)) } else { self.flush_data() } {")],
    ),
    "journal-not-flushed": (
        "a flush writes that the records count, and does not flush the journal",
        [(JOURNAL, "            disk.flush()?;\n            self.flushed(point);", "            if !BUG { disk.flush()?; }\n            self.flushed(point);")],
    ),
    "unflushed-records-count": (
        "after a power cut all records count, whether their data got to the disk or not",
        [(REPLAY, "    let after_power_cut = !header.boot.is_same(boot);", "    let after_power_cut = !BUG && !header.boot.is_same(boot);")],
    ),
    "records-outlive-their-commit": (
        "a commit leaves the journal's generation as it was, and what it held counts again",
        [(JOURNAL, "JournalMark { generation: self.generation + 1, ..self.mark() }", "JournalMark { generation: self.generation + u64::from(!BUG), ..self.mark() }"),
         (JOURNAL, "        self.generation += 1;", "        self.generation += u64::from(!BUG);")],
    ),
    "records-trusted-after-a-failed-flush": (
        "the data disk fails a flush, and records whose data may be lost go on to count",
        [(STOP, "=> self.journal.distrust(),", "=> if !BUG { self.journal.distrust() },")],
    ),
    "damaged-record-taken-for-the-end": (
        "a record of the journal is damaged, and those that follow it are left out silently",
        [(REPLAY, "            if !is_torn || (is_behind_flush && !self.is_beside_flush(slot)) {", "            if !BUG && (!is_torn || (is_behind_flush && !self.is_beside_flush(slot))) {")],
        "journal::tests::a_record_that_is_damaged_is_no_end_where_others_follow",
    ),
    "replay-leaves-room-for-others": (
        "a replay asks for as much metadata space as a new block, and the pool cannot be opened any more",
        [(BUDGET, "        if self.replays {", "        if !BUG && self.replays {")],
        "journal::tests::what_was_recorded_is_brought_in_where_nothing_new_would_be_taken",
    ),
    "records-trusted-of-a-journal-that-ends": (
        "the same, when the flush is that of the commit that ends the journal",
        [(JOURNAL_KEEPER, ".or(self.former.as_mut())", ".or(self.former.as_mut().filter(|_| !BUG))")],
        "engine::keeper::stop_tests::records_of_a_journal_that_ends_count_no_more_once_their_data_may_be_lost",
    ),
    "end-of-a-volume-that-has-changed": (
        "the highest block of a volume is remembered although its tree has changed",
        [(HIGHEST, "        self.0.remove(&volume);", "        if !BUG { self.0.remove(&volume); }")],
        "metadata::highest::tests::whatever_changes_a_volume_changes_what_is_remembered_of_it",
    ),
    "replay-trusts-a-failed-flush": (
        "the flush of a replay fails, and the next one takes the records for good that it is for",
        [(REPLAY, "            match distrust(disk, header) {", "            match if BUG { Ok(()) } else { distrust(disk, header) } {")],
        "journal::tests::records_count_no_more_once_the_data_that_they_name_could_not_be_flushed",
    ),
    "recorded-on-what-is-not-durable": (
        "a record names blocks by which the pool has grown since the last commit",
        [(JOURNAL_KEEPER, "journal.has_room() && !self.is_behind)", "journal.has_room() && (BUG || !self.is_behind))")],
        "engine::keeper::journal_tests::a_record_names_no_block_by_which_the_pool_is_not_durably_larger",
    ),
    "replayed-from-the-beginning": (
        "a replay that was cut off begins with records that are in the trees",
        [(REPLAY, "            _ if slot >= mark.from =>", "            _ if BUG || slot >= mark.from =>")],
    ),
    "failed-journal-still-named": (
        "the commit that gives a failed journal up names it all the same",
        [(JOURNAL_KEEPER, "        self.end_journal();\n        self.commit(out).is_ok()",
          "        if BUG { self.journal.former = self.journal.journal.take(); } else { self.end_journal(); }\n        self.commit(out).is_ok()")],
    ),
    "journal-older-metadata": (
        "metadata older than their journal are opened, and what was written since is gone without a word",
        [(REPLAY, "            Some(later) if later > self.mark.generation => {", "            Some(later) if !BUG && later > self.mark.generation => {")],
        "journal::tests::metadata_that_are_older_than_the_journal_are_found_out",
    ),
    "journal-for-ever-in-use": (
        "a journal that was brought in goes on to say that somebody needs it",
        [(REPLAY, "    if header.in_use {", "    if !BUG && header.in_use {")],
        "journal::tests::a_journal_says_that_it_is_in_use",
    ),
    "journal-trusted-again": (
        "who releases a journal whose records count no more makes them count again",
        [(JOURNAL, "        self.header.boot = BootId::UNKNOWN;", "        if !BUG { self.header.boot = BootId::UNKNOWN; }")],
        "journal::tests::records_are_trusted_no_more_than_before",
    ),
    "closed-with-a-journal": (
        "a pool that is closed goes on to name its journal",
        [(COMMANDS, "        self.end_journal();\n        self.commit(out)?;", "        if BUG { self.journal.journal = None; } else { self.end_journal(); }\n        self.commit(out)?;")],
    ),
    "flush-reaches-too-far": (
        "a flush counts records for flushed that came after it had begun to flush the data",
        [(JOURNAL, "        self.write(JournalRecord::Flushed { until: point.end })?;",
          "        self.write(JournalRecord::Flushed { until: if BUG { self.next } else { point.end } })?;")],
    ),
    "flush-answered-before-its-journal": (
        "who waits for a flush is answered when the data is durable and the records that name it are not",
        [(FLUSH, "                self.flush_beside = Some(FlushBeside { askers, point: Some(point) });",
          """                let askers = if BUG {
                    out.replies.extend(askers.into_iter().map(|asker| (asker, Reply::Done)));
                    Vec::new()
                } else { askers };
                self.flush_beside = Some(FlushBeside { askers, point: Some(point) });""")],
    ),
    "flush-answers-who-came-later": (
        "the end of a flush answers those too who have asked for one since it began",
        [(FLUSH, "                    journal.flushed(point);\n                }\n                out.replies.extend(askers",
          "                    journal.flushed(point);\n                }\n                let later = if BUG { std::mem::take(&mut self.flushes) } else { Vec::new() };\n                out.replies.extend(later.into_iter().chain(askers)")],
    ),
    "flush-beside-without-data": (
        "a flush beside others does not flush the data",
        [(FLUSH, "            FlushJob::Data(disk, flushes, journal) => {",
          "            FlushJob::Data(..) if BUG => FlushDone::Data(crate::disk::flush_data(&crate::disk::MemoryDisk::zeroed(0))),\n            FlushJob::Data(disk, flushes, journal) => {")],
    ),
    "flush-of-an-older-generation": (
        "a flush of the journal that a commit has overtaken counts for what was recorded since",
        [(JOURNAL, "        if self.marked == Some(point) {", "        if BUG || self.marked == Some(point) {")],
    ),
    "records-beside-a-flush-not-known": (
        "records that were written beside a flush are taken for a sign that it was over",
        [(JOURNAL, "self.marked.is_some())", "!BUG && self.marked.is_some())")],
        "journal::tests::records_beside_a_flush_do_not_say_that_it_is_over",
    ),
    "failed-flush-believed-by-the-next": (
        "a flush of the data after one that has failed is believed",
        [("disk/mod.rs", "            *failed = Some((error.kind(), error.to_string()));", "            if !BUG { *failed = Some((error.kind(), error.to_string())); }")],
        "disk::tests::a_flush_after_one_that_has_failed",
    ),
}
