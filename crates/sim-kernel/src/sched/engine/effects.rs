//! What a step turns out to have done besides, or less than, what it announced ([`Effect`]).

use super::Engine;
use crate::sched::effect::{Effect, EffectKind};
use crate::sched::op::{ObjId, Op, TaskId};

impl Engine {
    /// The running step did this, too.
    #[inline]
    pub(crate) fn effect(&self, kind: EffectKind, object: ObjId, index: u64) {
        if self.watching.get() {
            self.push_effect(Effect::new(kind, object, index));
        }
    }

    /// The running step did what this operation does, too.
    pub(crate) fn also(&self, op: &Op) {
        if self.watching.get()
            && let Some(effect) = Effect::of(op)
        {
            self.push_effect(effect);
        }
    }

    #[inline(never)]
    pub(super) fn push_effect(&self, effect: Effect) {
        if self.current.get() != TaskId::BOOT {
            self.trail.borrow_mut().push(effect);
        }
    }

    /// The running step also writes this place; somebody's [`Engine::also_reads`] of it depends on that.
    #[inline]
    pub(crate) fn also_writes(&self, object: ObjId, index: u64) {
        self.effect(EffectKind::Write, object, index);
    }

    /// The running step also reads this place.
    #[inline]
    pub(crate) fn also_reads(&self, object: ObjId, index: u64) {
        self.effect(EffectKind::Read, object, index);
    }

    /// The running step announced a read-modify-write and left the word as it was.
    #[inline]
    pub(crate) fn only_read(&self, object: ObjId, index: u64) {
        if self.watching.get() {
            for effect in self.trail.borrow_mut().running() {
                if effect.kind == EffectKind::Write && effect.object == object.0 && effect.index == index {
                    effect.kind = EffectKind::Read;
                }
            }
        }
    }

    /// The running step announced a read-modify-write and did no more than add, so that nobody can tell its order among other additions.
    #[inline]
    pub(crate) fn only_added(&self, object: ObjId, index: u64) {
        if self.watching.get() {
            for effect in self.trail.borrow_mut().running() {
                if effect.kind == EffectKind::Write && effect.object == object.0 && effect.index == index {
                    effect.kind = EffectKind::Add;
                }
            }
        }
    }

    /// The running step tested the condition of a wait, and it holds: nobody sleeps, and whether somebody wakes the queue makes no difference.
    pub(crate) fn did_not_sleep(&self, op: &Op) {
        if self.watching.get() {
            self.trail.borrow_mut().replace(EffectKind::Wait, Effect::new(EffectKind::Read, op.object, op.index));
        }
    }

    /// The running step tested the condition of a sleeper, and read nothing but this place to do so.
    pub(crate) fn condition_is(&self, object: ObjId, index: u64) {
        if self.watching.get() {
            let read = Effect::new(EffectKind::Read, object, index);
            self.trail.borrow_mut().replace(EffectKind::ReadAnything, read);
        }
    }
}
