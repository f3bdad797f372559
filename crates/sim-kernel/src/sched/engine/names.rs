//! What tasks and objects are called in logs and reports: an object by the class that it was registered with and its number among those.

use super::{Engine, Names, ObjId, TaskId};
use crate::sched::store_buffer::owner_of;

impl Names for Engine {
    fn task(&self, task: TaskId) -> String {
        if let Some(owner) = owner_of(task)
            && self.stores.is_on.get()
        {
            return format!("{}'s store buffer", self.task(owner));
        }
        self.names.borrow().get(task.index()).map_or_else(|| format!("{task:?}"), |n| n.to_string())
    }

    fn object(&self, object: ObjId) -> String {
        let objects = self.objects.borrow();
        let Some(class) = objects.get(object.0 as usize) else {
            return format!("object {}", object.0);
        };
        if object == ObjId::NONE {
            return (*class).to_string();
        }
        let ordinal = objects[..object.0 as usize].iter().filter(|c| *c == class).count();
        format!("{class}#{ordinal}")
    }
}
