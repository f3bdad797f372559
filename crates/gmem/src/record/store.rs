//! States, kept as differences: rows that come and go, cells that change.
//!
//! Every cell of every row that ever was has a number; a state is a value for each, [`Value::Absent`] for rows that are not there. A step keeps
//! only the cells that it changed. [`Store::state_at`] replays from the nearest keyframe, of which there is one every [`KEYFRAME_EVERY`]
//! steps, so that going anywhere costs at most that many.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use super::names::{Kind, Names};
use super::table::Table;

/// Steps between keyframes.
pub const KEYFRAME_EVERY: usize = 256;

/// Where a row stands in its table: compared in this order.
pub type Key = [u64; 4];

/// What the cells of a row follow from, where that is cheaper to compare than they are to make.
pub type Stamp = [u64; 4];

/// What stands in a cell.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub enum Value {
    /// The row is not there.
    #[default]
    Absent,
    /// Nothing.
    Empty,
    /// A count.
    Number(u64),
    /// An address, a frame, a page.
    Hex(u64),
    /// A page of a range: first and last.
    Range(u64, u64),
    /// Something that has a name.
    Named(Kind, u64),
    /// An address of the VMM.
    Hva(u64),
    /// A word.
    Word(&'static str),
    /// Any text.
    Text(String),
    /// Text about something that has a name.
    Of(Kind, u64, String),
}

impl Value {
    /// The value for people.
    pub fn words(&self, names: &Names) -> String {
        match self {
            Value::Absent | Value::Empty => String::new(),
            Value::Number(number) => number.to_string(),
            Value::Hex(number) => format!("{number:#x}"),
            Value::Range(first, last) if first == last => format!("{first:#x}"),
            Value::Range(first, last) => format!("{first:#x}..{last:#x}"),
            Value::Named(kind, number) => names.of(*kind, *number),
            Value::Hva(hva) => names.address(*hva),
            Value::Word(word) => (*word).to_string(),
            Value::Text(text) => text.clone(),
            Value::Of(kind, number, text) => format!("{}{text}", names.of(*kind, *number)),
        }
    }
}

/// A row that was there at some time.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its table.
    pub table: Table,
    /// Its place in the table.
    pub key: Key,
    /// The guest frames that it is about: first, and first after them. Empty: none.
    pub gfns: (u64, u64),
    /// Number of its first cell.
    pub cell: u32,
    /// The look that saw it last.
    seen: u64,
    /// What its cells were made of, if somebody said so.
    stamp: Option<Stamp>,
}

/// A cell that a step changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// The cell.
    pub cell: u32,
    /// Number of its value from then on, in [`Store::values`].
    pub value: u32,
}

/// All states of a run.
#[derive(Debug)]
pub struct Store {
    rows: Vec<Row>,
    index: FxHashMap<(Table, Key), u32>,
    /// The state after the last step, by cell.
    now: Vec<u32>,
    /// Rows that are there now.
    present: BTreeSet<u32>,
    looks: u64,
    /// Rows that this look has seen.
    seen: usize,
    values: Vec<Value>,
    value_index: FxHashMap<Value, u32>,
    changes: Vec<Change>,
    /// For each step, where its changes end.
    ends: Vec<usize>,
    /// The state before every [`KEYFRAME_EVERY`]-th step, as far as cells existed.
    keyframes: Vec<Vec<u32>>,
}

impl Default for Store {
    fn default() -> Store {
        Store {
            rows: Vec::new(),
            index: FxHashMap::default(),
            now: Vec::new(),
            present: BTreeSet::new(),
            looks: 0,
            seen: 0,
            values: vec![Value::Absent],
            value_index: FxHashMap::from_iter([(Value::Absent, 0)]),
            changes: Vec::new(),
            ends: Vec::new(),
            keyframes: vec![Vec::new()],
        }
    }
}

impl Store {
    /// Nothing was seen yet.
    pub fn new() -> Store {
        Store::default()
    }

    /// Begins a look at the state.
    pub fn begin(&mut self) {
        self.looks += 1;
        self.seen = 0;
    }

    /// Says that a row is there. `gfns` are the guest frames that it is about.
    ///
    /// # Panics
    /// If the table has another number of columns.
    pub fn row<const N: usize>(&mut self, table: Table, key: Key, gfns: (u64, u64), cells: [Value; N]) {
        assert_eq!(N, table.spec().columns.len(), "columns of {}", table.spec().id);
        let number = match self.index.get(&(table, key)) {
            Some(number) => *number,
            None => {
                let number = self.rows.len() as u32;
                let cell = self.now.len() as u32;
                self.now.resize(self.now.len() + N, 0);
                self.rows.push(Row { table, key, gfns: (0, 0), cell, seen: 0, stamp: None });
                self.index.insert((table, key), number);
                number
            }
        };
        let row = &mut self.rows[number as usize];
        self.seen += usize::from(row.seen != self.looks);
        row.seen = self.looks;
        row.stamp = None;
        if gfns.0 < gfns.1 && row.gfns != gfns {
            let (first, end) = row.gfns;
            row.gfns = if first < end { (first.min(gfns.0), end.max(gfns.1)) } else { gfns };
        }
        let first = row.cell;
        if self.now[first as usize] == 0 {
            self.present.insert(number);
        }
        for (cell, value) in (first..).zip(cells) {
            if self.values[self.now[cell as usize] as usize] != value {
                self.set(cell, value);
            }
        }
    }

    /// The same of a row whose cells are those of the look before if `stamp` is: then they are not made again. Whatever they follow from is in the stamp, but not the guest frames.
    pub fn row_by<const N: usize>(
        &mut self,
        table: Table,
        key: Key,
        gfns: (u64, u64),
        stamp: Stamp,
        cells: impl FnOnce() -> [Value; N],
    ) {
        let known = self.index.get(&(table, key)).map(|number| &mut self.rows[*number as usize]);
        if let Some(row) = known
            && row.stamp == Some(stamp)
            && (gfns.0 >= gfns.1 || row.gfns.0 <= gfns.0 && gfns.1 <= row.gfns.1)
        {
            self.seen += usize::from(row.seen != self.looks);
            row.seen = self.looks;
            if cfg!(debug_assertions) {
                let was = &self.now[row.cell as usize..][..N];
                let was: Vec<&Value> = was.iter().map(|value| &self.values[*value as usize]).collect();
                assert!(was.iter().copied().eq(&cells()), "{}: not all is in the stamp of {was:?}", table.spec().id);
            }
            return;
        }
        self.row(table, key, gfns, cells());
        let number = self.index[&(table, key)];
        self.rows[number as usize].stamp = Some(stamp);
    }

    fn set(&mut self, cell: u32, value: Value) {
        let value = match self.value_index.get(&value) {
            Some(number) => *number,
            None => {
                let number = self.values.len() as u32;
                self.values.push(value.clone());
                self.value_index.insert(value, number);
                number
            }
        };
        self.now[cell as usize] = value;
        self.changes.push(Change { cell, value });
    }

    /// Ends a look: rows that nobody spoke of are gone. What changed since the last look belongs to the step that ends here.
    pub fn end(&mut self) {
        if self.seen == self.present.len() {
            return self.end_step();
        }
        let gone: Vec<u32> =
            self.present.iter().copied().filter(|row| self.rows[*row as usize].seen != self.looks).collect();
        for row in gone {
            self.present.remove(&row);
            self.rows[row as usize].stamp = None;
            let Row { table, cell, .. } = self.rows[row as usize];
            for cell in cell..cell + table.spec().columns.len() as u32 {
                self.set(cell, Value::Absent);
            }
        }
        self.end_step();
    }

    fn end_step(&mut self) {
        self.ends.push(self.changes.len());
        if self.ends.len().is_multiple_of(KEYFRAME_EVERY) {
            self.keyframes.push(self.now.clone());
        }
    }

    /// How many looks there were: one for the beginning, and one after each step.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether nobody looked.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The rows that ever were, in the order in which they were first seen.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The values that ever were; number 0 is [`Value::Absent`].
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// How many cells there are.
    pub fn cells(&self) -> usize {
        self.now.len()
    }

    /// What changed between look `at - 1` and look `at`; for 0, since there was nothing.
    pub fn changes(&self, at: usize) -> &[Change] {
        let from = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.changes[from..self.ends[at]]
    }

    /// The number of the value of each cell at look `at`.
    ///
    /// # Panics
    /// If there was no such look.
    pub fn state_at(&self, at: usize) -> Vec<u32> {
        assert!(at < self.ends.len(), "look {at} of {}", self.ends.len());
        let frame = (at + 1) / KEYFRAME_EVERY;
        let mut state = self.keyframes[frame].clone();
        state.resize(self.now.len(), 0);
        for step in frame * KEYFRAME_EVERY..=at {
            for Change { cell, value } in self.changes(step) {
                state[*cell as usize] = *value;
            }
        }
        state
    }

    /// Numbers of the rows in the order in which they are shown.
    pub fn order(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.rows.len() as u32).collect();
        order.sort_by_key(|row| {
            let row = &self.rows[*row as usize];
            (row.table, row.key)
        });
        order
    }

    /// The row of a cell.
    pub fn row_of(&self, cell: u32) -> (usize, usize) {
        let row = self.rows.partition_point(|row| row.cell <= cell) - 1;
        (row, (cell - self.rows[row].cell) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Rows that come, change and go, beside whole states.
    #[test]
    fn differences_give_back_every_state() {
        let mut store = Store::new();
        let mut naive: Vec<BTreeMap<Key, (u64, u64)>> = Vec::new();
        let mut random = 1_u64;
        let mut draw = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        let mut rows: BTreeMap<Key, (u64, u64)> = BTreeMap::new();
        for _ in 0..3 * KEYFRAME_EVERY + 7 {
            for _ in 0..draw(4) {
                let key = [draw(2), draw(9), 0, 0];
                if draw(3) == 0 {
                    rows.remove(&key);
                } else {
                    rows.insert(key, (draw(5), draw(5)));
                }
            }
            store.begin();
            for (key, (a, b)) in &rows {
                let cells = || [Value::Number(*a), Value::Hex(*b)];
                match key[0] {
                    0 => store.row(Table::COUNTERS, *key, (0, 0), cells()),
                    _ => store.row_by(Table::COUNTERS, *key, (0, 0), [*a, *b, 0, 0], cells),
                }
            }
            store.end();
            naive.push(rows.clone());
        }
        for (at, wanted) in naive.iter().enumerate() {
            let state = store.state_at(at);
            let value = |cell: u32| store.values()[state[cell as usize] as usize].clone();
            let seen: BTreeMap<Key, (Value, Value)> = store
                .rows()
                .iter()
                .filter(|row| value(row.cell) != Value::Absent)
                .map(|row| (row.key, (value(row.cell), value(row.cell + 1))))
                .collect();
            let wanted = wanted.iter().map(|(key, (a, b))| (*key, (Value::Number(*a), Value::Hex(*b)))).collect();
            assert_eq!(seen, wanted, "look {at}");
        }
        let all: usize = (0..store.len()).map(|at| store.changes(at).len()).sum();
        assert!(all < naive.iter().map(BTreeMap::len).sum(), "differences are less than states");
    }
}
